"""What a user types: names, modules, results, configuration."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from cases import DIVERGENCES, randn, run

import fastdistill as fd

N, V, D = 4, 33, 8


def logits_call(**changes):
    arguments = {"student_logits": randn(N, V), "teacher": randn(N, V, seed=1), **changes}
    return fd.distillation_loss(**arguments)


# ---- names -------------------------------------------------------------------------------------


def test_get_divergence_builds_every_class_by_its_name():
    for divergence in DIVERGENCES:
        parameters = {f.name: getattr(divergence, f.name) for f in fields(divergence)}
        assert fd.get_divergence(divergence.name, **parameters) == divergence
    assert fd.get_divergence("jensen_shannon", beta=0.1) == fd.JensenShannon(0.1)
    with pytest.raises(TypeError, match="alpha"):
        fd.get_divergence("jensen_shannon", alpha=0.1)


def test_names_are_the_snake_case_of_the_classes():
    for cls in fd.divergences.ALL:
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        assert cls.name == snake
        assert getattr(fd, cls.__name__) is cls


def test_a_name_is_the_default_instance():
    for name in ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation"):
        assert torch.equal(
            logits_call(divergence=name), logits_call(divergence=fd.get_divergence(name))
        )


def test_every_cpp_divergence_has_a_python_class():
    native = dict(fd._C.divergences())
    assert native == {cls.__name__: len(fields(cls)) for cls in fd.divergences.ALL}


def test_divergences_are_values():
    assert fd.JensenShannon(0.5) == fd.JensenShannon()
    assert len({fd.ForwardKL(), fd.ForwardKL(), fd.Renyi(0.5), fd.Renyi(2.0)}) == 3
    with pytest.raises(AttributeError):
        fd.JensenShannon().beta = 0.1


def test_everything_public_is_documented():
    for name in fd.__all__:
        assert inspect.getdoc(getattr(fd, name)), name


def test_bare_tensor_means_teacher_logits():
    teacher = randn(N, V, seed=1)
    assert torch.equal(logits_call(teacher=teacher), logits_call(teacher=fd.TeacherLogits(teacher)))


def test_numpy_logits_are_shared():
    array = np.random.default_rng(0).standard_normal((N, V), dtype=np.float32)
    teacher = fd.TeacherLogits(array)
    assert teacher.logits.data_ptr() == array.ctypes.data
    assert torch.equal(logits_call(teacher=teacher), logits_call(teacher=torch.tensor(array)))


# ---- modules -----------------------------------------------------------------------------------

CONFIG = {
    "divergence": fd.JensenShannon(0.2), "temperature": 2.0, "soft_weight": 0.7,
    "hard_weight": 0.4, "scale_by_temperature_squared": True, "ignore_index": -1,
    "reduction": "sum", "student_softcap": 9.0, "student_scale": 0.5, "student_valid_vocab": 30,
}  # fmt: skip


def test_modules_equal_the_functions():
    tokens = {"mask": torch.tensor([True, True, False, True]), "weights": torch.linspace(1, 2, N)}
    labels = torch.tensor([3, -1, 2, 0])
    logits = (randn(N, V), randn(N, V, seed=1), labels)
    module = fd.DistillationLoss(**CONFIG)
    assert torch.equal(module(*logits, **tokens), fd.distillation_loss(*logits, **tokens, **CONFIG))
    head = (randn(N, D), randn(V, D, seed=1), randn(N, V, seed=2), labels)
    extra = {"chunk_size": 3, "logits_dtype": torch.float32}
    module = fd.LinearDistillationLoss(**CONFIG, **extra)
    bias = randn(V, seed=3)
    assert torch.equal(
        module(*head, student_bias=bias, **tokens),
        fd.linear_distillation_loss(*head, student_bias=bias, **tokens, **CONFIG, **extra),
    )
    num_items = {"num_items": 7}
    assert torch.equal(
        fd.DistillationLoss()(*logits, **num_items), fd.distillation_loss(*logits, **num_items)
    )


def test_modules_show_their_configuration():
    shown = repr(fd.LinearDistillationLoss(**CONFIG, chunk_size=3))
    assert shown.startswith("LinearDistillationLoss(")
    assert all(f"{name}={value}" in shown for name, value in CONFIG.items())
    assert "chunk_size=3" in shown
    assert "divergence=ForwardKL()" in repr(fd.DistillationLoss())


def test_modules_have_no_state():
    module = fd.DistillationLoss(divergence="reverse_kl")
    assert not module.state_dict()
    assert not list(module.parameters())


@pytest.mark.parametrize("module", [fd.DistillationLoss, fd.LinearDistillationLoss])
def test_modules_check_their_configuration_at_once(module):
    with pytest.raises(ValueError, match="temperature"):
        module(temperature=0.0)
    with pytest.raises(TypeError, match="temperatur"):
        module(temperatur=1.0)


def test_linear_module_checks_its_own_options_at_once():
    with pytest.raises(ValueError, match="chunk_size"):
        fd.LinearDistillationLoss(chunk_size=0)
    with pytest.raises(ValueError, match="logits_dtype"):
        fd.LinearDistillationLoss(logits_dtype=torch.float16)


def test_functions_and_modules_take_the_same_options():
    function = set(inspect.signature(fd.linear_distillation_loss).parameters)
    assert set(inspect.signature(fd.distillation_loss).parameters) - {"student_logits"} <= function
    per_call = set(inspect.signature(fd.LinearDistillationLoss.forward).parameters) - {"self"}
    assert function == per_call | set(fd.LinearDistillationLoss().config)


# ---- results -----------------------------------------------------------------------------------


def test_loss_dtype(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {"student_logits": randn(N, V, dtype=dtype)}
    for reduction in ("none", "mean"):
        loss, gradient = run(fd.distillation_loss, inputs, randn(N, V), reduction=reduction)
        assert loss.dtype == expected
        assert gradient.dtype == dtype


def test_mean_divides_by_the_counted_weight():
    weights, mask = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([True, False, True, True])
    row = logits_call(reduction="none")
    expected = (row * weights * mask).sum() / 13
    torch.testing.assert_close(logits_call(weights=weights, mask=mask), expected)
    torch.testing.assert_close(
        logits_call(weights=weights, mask=mask, num_items=5), expected * 13 / 5
    )
    torch.testing.assert_close(logits_call(mask=mask), (row * mask).sum() / 3)


def test_inputs_are_not_changed():
    student, teacher = randn(N, V), randn(N, V, seed=1)
    run(fd.distillation_loss, {"student_logits": student}, teacher)
    assert torch.equal(student, randn(N, V))
    assert torch.equal(teacher, randn(N, V, seed=1))


# ---- configuration -----------------------------------------------------------------------------


def test_show_config_names_the_instruction_set(capsys, isa):
    fd.show_config()
    shown = capsys.readouterr().out
    assert f"{isa} (available: {', '.join(fd._C.available_isas())})" in shown
    for fact in (fd.__version__, torch.__version__, fd._C.COMPILER, "cuda"):
        assert fact in shown


def python(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("name", fd._C.available_isas())
def test_instruction_set_is_forced_by_the_environment(name):
    result = python("import fastdistill as fd; print(fd._C.current_isa())", FASTDISTILL_ISA=name)
    assert result.stdout.strip() == name


def test_unknown_instruction_set_is_an_error():
    result = python("import fastdistill as fd; fd.show_config()", FASTDISTILL_ISA="mmx")
    assert result.returncode != 0
    assert f"({', '.join(fd._C.available_isas())}), got 'mmx'" in result.stderr
    with pytest.raises(ValueError, match="instruction set must be .*, got 'mmx'"):
        fd._C.select_isa("mmx")


def test_import_is_light():
    """The library needs nothing of what its command line needs."""
    heavy = {"transformers", "gguf", "typer", "rich", "torch._dynamo", "fastdistill.cli"}
    result = python(f"import sys, fastdistill; print({heavy} & set(sys.modules))")
    assert result.stdout.strip() == "set()", result.stderr
