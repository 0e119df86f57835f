// Compiled with the flags of this instruction set.
#define FD_ISA baseline
#include "kernel_table.h"
