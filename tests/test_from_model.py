"""What a model gives without its logits makes the loss and the gradients that they make."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastdistill as fd

pytest.importorskip("transformers", reason="needs fastdistill[distill]")

import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

# peft asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")

V, B, S = 97, 2, 7
SIZES = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama_tied": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8),
    "gemma2": transformers.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=5.0),
    "gemma3": transformers.Gemma3TextConfig(**SIZES, head_dim=8, final_logit_softcapping=4.0),
    "granite": transformers.GraniteConfig(**SIZES, logits_scaling=4.0),
    "cohere": transformers.CohereConfig(**SIZES, logit_scale=0.25),
    "phi": transformers.PhiConfig(**SIZES),  # its head has a bias
    "mpt": transformers.MptConfig(  # its logit_scale is None
        vocab_size=V, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, initializer_range=0.3
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
    ),
}
LABELS = torch.arange(B * S).reshape(B, S) * 5 % V
LABELS[1, :3] = -100
INPUTS = {
    "input_ids": torch.arange(B * S).reshape(B, S) * 11 % V,
    "attention_mask": (torch.arange(S) > 1).expand(B, S).long(),
    "labels": LABELS,
}
OPTIONS = {"divergence": "jensen_shannon", "temperature": 2.0, "hard_weight": 0.3}


def make(config, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # they begin at zero, where no test would miss them
            torch.nn.init.normal_(parameter)
    return model.eval()


def llama(seed=0):
    return make(FAMILIES["llama"], seed)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def from_heads(student, teacher):
    head = fd.StudentHead.from_model(student, **INPUTS)
    loss = head.loss(fd.TeacherHead.from_model(teacher, **INPUTS), LABELS, **OPTIONS)
    return loss.detach(), gradients(student, loss)


def from_logits(student, teacher):
    inputs = {name: value for name, value in INPUTS.items() if name != "labels"}
    with torch.no_grad():
        teacher_logits = teacher(**inputs).logits
    loss = fd.distillation_loss(student(**inputs).logits, teacher_logits, LABELS, **OPTIONS)
    return loss.detach(), gradients(student, loss)


def assert_the_same(student, teacher):
    loss, grads = from_heads(student, teacher)
    expected, expected_grads = from_logits(student, teacher)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert grads.keys() == expected_grads.keys()
    largest = max(g.abs().max() for g in expected_grads.values())
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_logits(family):
    student = make(FAMILIES[family])
    assert_the_same(student, make(FAMILIES[family], seed=1))
    assert student.get_output_embeddings().weight.grad.any()


def test_student_and_teacher_may_be_of_different_families():
    assert_the_same(make(FAMILIES["gemma2"]), make(FAMILIES["cohere"]))


# One rounding to bf16 is 2^-9. The model rounds its logits, and softcap and scale once more each;
# here the transform is taken in float32. Two layers of backward carry the difference on.
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "phi"])
def test_bfloat16_models_agree_to_their_rounding(family):
    models = [make(FAMILIES[family], seed, torch.bfloat16) for seed in (0, 1)]
    loss, grads = from_heads(*models)
    expected, expected_grads = from_logits(*models)
    torch.testing.assert_close(loss, expected, rtol=2**-10, atol=0)
    for name, grad in expected_grads.items():
        assert (grads[name] - grad).norm() <= 2**-4 * grad.norm(), name


# ---- wrappers -------------------------------------------------------------------------------------


def lora(model, **config):
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    return peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **config)).eval()


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_lora(saved):
    student = lora(llama(), target_modules=["q_proj", "up_proj"], modules_to_save=saved)
    assert_the_same(student, lora(llama(1), target_modules="all-linear"))
    trained = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert trained == {n for n, p in student.named_parameters() if p.requires_grad}
    assert any("lm_head" in name for name in trained) == (saved is not None)


def test_a_model_without_its_adapter_can_be_the_teacher():
    plain = llama()
    student = lora(llama(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        student.get_base_model().lm_head.modules_to_save["default"].weight.mul_(2)
    with student.disable_adapter():
        teacher = fd.TeacherHead.from_model(student, **INPUTS)
    expected = fd.TeacherHead.from_model(plain, **INPUTS)
    torch.testing.assert_close(teacher.hidden, expected.hidden)
    torch.testing.assert_close(teacher.weight, expected.weight)


def test_a_lora_on_the_head_is_refused():
    student = lora(llama(), target_modules=["q_proj", "lm_head"])
    with pytest.raises(
        TypeError, match=r"head of LlamaForCausalLM must be a torch.nn.Linear, got peft"
    ):
        fd.StudentHead.from_model(student, **INPUTS)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("find_unused", [False, True])
def test_data_parallel_reduces_every_gradient_once(process_group, find_unused):
    student = llama()
    wrapped = torch.nn.parallel.DistributedDataParallel(student, find_unused_parameters=find_unused)
    for _ in range(2):  # a reduction that was left unfinished raises in the next forward
        loss, grads = from_heads(wrapped, llama(1))
    expected, expected_grads = from_logits(student, llama(1))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[f"module.{name}"], grad, rtol=1e-4, atol=1e-6)


# Dynamo instantiates torch.autograd.Function itself when it traces one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_is_compiled_once():
    student, compilations = llama(), []

    def backend(graph, example_inputs):
        compilations.append(graph)
        return graph

    compiled = torch.compile(student, backend=backend)
    losses = [from_heads(compiled, llama(1))[0] for _ in range(3)]
    assert len(compilations) == 1
    torch.testing.assert_close(losses, [from_heads(student, llama(1))[0]] * 3)
    assert compiled(input_ids=INPUTS["input_ids"]).logits.shape == (B, S, V)


# ---- what is not done -----------------------------------------------------------------------------


class Shapes(TorchDispatchMode):
    """Notes the shapes of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.seen |= {tuple(t.shape) for t in tree_leaves(made) if isinstance(t, torch.Tensor)}
        return made


@pytest.mark.parametrize("side", [fd.StudentHead, fd.TeacherHead])
def test_logits_are_not_made(side):
    with Shapes() as shapes:
        head = side.from_model(llama(), **INPUTS)
    assert (B, S, 32) in shapes.seen
    assert not [shape for shape in shapes.seen if shape[:2] == (B, S) and shape[-1] == V]
    assert head.hidden.shape == (B, S, 32)


def test_the_teacher_has_no_graph():
    student, teacher = llama(), llama(1)
    assert not fd.TeacherHead.from_model(teacher, **INPUTS).hidden.requires_grad
    from_heads(student, teacher)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_model_is_given_what_it_needs_alone():
    model, given = llama(), {}
    model.register_forward_pre_hook(lambda _, args, kwargs: given.update(kwargs), with_kwargs=True)
    fd.StudentHead.from_model(
        model, **INPUTS, shift_labels=LABELS, num_items_in_batch=3, skip_logits=True
    )
    assert given.keys() == {"input_ids", "attention_mask", "use_cache"}
    assert given["use_cache"] is False


@pytest.mark.parametrize("hooked", [False, True])
def test_the_head_is_as_it_was(hooked):
    model = llama()
    if hooked:  # as accelerate does
        model.lm_head.forward = model.lm_head.forward
    before = dict(vars(model.lm_head))
    fd.StudentHead.from_model(model, **INPUTS)
    assert vars(model.lm_head) == before
    with pytest.raises(ValueError, match="exactly one of"):
        fd.StudentHead.from_model(model)
    assert vars(model.lm_head) == before
    assert model(input_ids=INPUTS["input_ids"]).logits.shape == (B, S, V)


# ---- what cannot be done --------------------------------------------------------------------------


class Shifted(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 0.1
        return output


class Twice(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        super().forward(*args, **kwargs)
        return super().forward(*args, **kwargs)


def test_an_unknown_transform_of_the_logits_is_refused():
    with pytest.raises(
        ValueError, match=r"Shifted does more to its logits than softcap=None and scale=1"
    ):
        fd.StudentHead.from_model(Shifted(FAMILIES["llama"]), **INPUTS)


def test_a_head_that_is_called_twice_is_refused():
    with pytest.raises(ValueError, match="Twice must call its head once .* called it 2 times"):
        fd.StudentHead.from_model(Twice(FAMILIES["llama"]), **INPUTS)


@pytest.mark.parametrize("model", [torch.nn.Identity(), LlamaModel(FAMILIES["llama"])])
def test_a_model_without_head_is_refused(model):
    with pytest.raises(TypeError, match=f"(got|head of) {type(model).__name__}"):
        fd.TeacherHead.from_model(model, **INPUTS)


def test_a_head_that_is_not_in_memory_is_refused():
    model = llama()
    model.lm_head.to("meta")
    with pytest.raises(ValueError, match="head of LlamaForCausalLM must be in memory"):
        fd.TeacherHead.from_model(model, **INPUTS)


# ---- vocabulary -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", [90, None])
def test_rows_of_a_padded_head_do_not_count(stated):
    model = llama()
    if stated is None:
        model.config.vocab_size = 90
    head = fd.StudentHead.from_model(model, valid_vocab=stated, **INPUTS)
    assert head.valid_vocab == 90
    teacher = torch.randn(B, S, 90, generator=torch.Generator().manual_seed(0))
    logits = model(input_ids=INPUTS["input_ids"], attention_mask=INPUTS["attention_mask"]).logits
    expected = fd.distillation_loss(logits[..., :90], teacher)
    torch.testing.assert_close(head.loss(teacher), expected)


def test_the_options_of_the_loss_reach_it():
    head = fd.StudentHead.from_model(llama(), **INPUTS)
    loss, metrics = head.loss(torch.randn(B, S, V), return_metrics=True, reduction="sum")
    assert metrics.counted == B * S
    torch.testing.assert_close(loss, B * S * metrics.soft_loss, check_dtype=False)
