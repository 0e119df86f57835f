"""The losses inside training frameworks, a module for each. None is imported before it is used."""
