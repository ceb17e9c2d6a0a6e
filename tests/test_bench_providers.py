"""What is timed: every provider behind its gate, its bytes counted, its absence named."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")

from bench import __main__ as command
from bench import (
    cases,
    gate,
    idioms,
    kernels,
    memory,
    peers,
    providers,
    strongest,
    timing,
    traffic,
    worker,
)
from bench.cases import Case
from pyrevgrad import backends

ROOT = Path(__file__).resolve().parent.parent


def test_byte_counts_are_those_of_the_issue():
    guided, reverse = Case("relu", "guided_scaled"), Case("relu", "reverse")
    assert traffic.fused_forward(guided, "float32") == 8.125
    assert traffic.fused_backward(guided, "float32") == 8.125
    assert traffic.ceiling("idiom", reverse, "float32") == pytest.approx(1.72, abs=0.005)
    assert traffic.ceiling("plain", guided, "bfloat16") == pytest.approx(10 / 8.25)
    assert traffic.ceiling("reference", guided, "float32") is None
    assert traffic.fused_backward(Case("silu", "STRAIGHT_THROUGH"), "float32") == 0


def test_idiom_casts_its_booleans_as_the_byte_count_says():
    x, g = torch.randn(64), torch.randn(64)
    with torch.profiler.profile(record_shapes=True) as profile:
        g * (x > 0) * (g > 0)
    # The comparisons cast their 0, too: that copy has no dimensions.
    events = [e for e in profile.events() if e.input_shapes and e.input_shapes[0] == [64]]
    assert [e.name for e in events].count("aten::copy_") == 2


#: Which of relu's cases the other libraries have.
APPLIES = {
    "captum": {"GUIDED", "guided_slope", "guided_product", "DECONVNET"},
    "zennit": {"GUIDED", "guided_slope", "guided_product", "DECONVNET"},
    "grad-cam": {"GUIDED", "guided_slope", "guided_product"},
    "pytorch-revgrad": {"reverse"},
    "numpy": {"GUIDED", "reverse"},
    "fused-triton": set(),
}


@pytest.mark.parametrize("rule", list(cases.RULES))
@pytest.mark.parametrize(
    "name", [name for name in providers.NAMES if name not in providers.COMPILED]
)
def test_every_provider_passes_its_gate_on_relu_or_says_why_it_does_not_run(name, rule):
    case = Case("relu", rule)
    x, g = providers.tensors(1000, torch.float32)
    without = {other: "not asked for" for other in providers.NAMES if other != name}
    made = providers.build(case, torch.float32, without)
    (provider,) = [provider for provider in made if provider.name == name]
    if isinstance(provider, providers.Skipped):
        applies = rule in APPLIES.get(name, cases.RULES)
        absent = name in peers.PACKAGES and importlib.util.find_spec(peers.PACKAGES[name]) is None
        unwritten = name in ("idiom", "eager-best")
        unbuilt = name == "fused" and memory.pyrevgrad.backends._native is None
        assert not applies or absent or unwritten or unbuilt, provider.reason
        assert len(provider.reason) > 10
        return
    assert rule in APPLIES.get(name, cases.RULES)
    gate.check(provider, case, x, g, gate.expected(case, x, g)[name])


@pytest.mark.parametrize("case", cases.RELU_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_what_is_compiled_as_the_strongest_form_sends_back_what_the_rule_does(case, dtype):
    x, g = providers.tensors(1000, dtype)
    backward = strongest.relu_backward(case.rule_name, case.rule)
    step = idioms.differentiated(lambda x: strongest.CompiledRelu.apply(x, backward))
    provider = providers.Provider("best+compile", step)
    gate.check(provider, case, x, g, gate.expected(case, x, g)["best+compile"])
    assert traffic.ceiling("best+compile", case, "float32") == pytest.approx(20 / 16.25)


FORMS = ("eager-best", providers.HOOK)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", cases.default_cases(False), ids=lambda case: case.name)
def test_each_strongest_eager_form_gives_the_rule_s_gradient(case, dtype, name):
    x, g = providers.tensors(4099, dtype)
    made = providers._MAKERS[name](case, dtype, x.device)
    if isinstance(made, providers.Skipped):
        assert name == providers.HOOK and case.rule_name != "reverse"
        return
    gate.check(made, case, x, g, gate.expected(case, x, g)[name])


def test_the_strongest_forms_run_as_many_kernels_as_their_bytes_say():
    x, g = torch.randn(64).requires_grad_() * 1, torch.randn(64)
    # 4 bytes an element each read and write: forward 2 of them, then the kernels of backward.
    for rule, run, ceiling in (
        ("reverse", ["elu_backward"], 20 / 16.25),
        ("guided_scaled", ["clamp_min", "elu_backward"], 28 / 16.25),
        ("GUIDED", ["threshold_backward", "clamp_min_"], 28 / 16.25),
    ):
        case = Case("relu", rule)
        y = strongest.function("relu", rule, case.rule)(x)
        with torch.profiler.profile() as profile:
            torch.autograd.grad(y, x, g)
        names = [f"aten::{name}" for name in run]
        assert [e.name for e in profile.events() if e.name in names] == names
        assert traffic.ceiling("eager-best", case, "float32") == pytest.approx(ceiling)
    assert traffic.ceiling("eager-best", Case("elu", "reverse"), "float32") == 1.0
    assert traffic.ceiling("eager-best", Case("gelu", "reverse"), "float32") == 1.4


def test_of_the_forms_that_compete_the_fastest_is_the_row_s():
    def took(*seconds):
        return timing.Measured(seconds, 1, 0.0)

    times = {"idiom": took(3.0, 3.0), "eager-best": took(2.0, 2.0), "fused": took(1.0, 1.0)}
    assert providers.fastest_form("eager-best", times) == (took(2.0, 2.0), {"form": "Function"})
    times[providers.HOOK] = took(1.5, 1.7)
    assert providers.fastest_form("eager-best", times) == (took(1.5, 1.7), {"form": "hook"})
    times["idiom"] = took(1.2, 1.2)
    assert providers.fastest_form("eager-best", times)[1] == {"form": "idiom"}
    assert providers.fastest_form("fused", times) == (took(1.0, 1.0), {})


def test_a_form_that_is_wrong_refuses_the_row_that_it_competes_for():
    case = Case("relu", "reverse")
    x, g = providers.tensors(100, torch.float32)
    wrong = providers.Provider(providers.HOOK, lambda x, g: (F.relu(x), g))
    made = [p for p in providers.build(case, x.dtype) if p.name == "eager-best"]
    passed, left_out = gate.gated([*made, wrong], case, x, g)
    assert not passed and "wrong gradient" in left_out["eager-best"]["refused"]


def test_what_is_compiled_is_compared_with_ours_compiled():
    seconds = {"fused": 1.0, "fused+compile": 4.0, "idiom+compile": 6.0, "plain": 2.0}
    times = {name: timing.Measured((one, one), 1, 0.0) for name, one in seconds.items()}
    found = {name: worker._timed(name, Case("relu", "GUIDED"), "float32", times) for name in times}
    idiom = found["idiom+compile"]
    assert (idiom["speedup"], idiom["compiled_speedup"]) == (6.0, 1.5)
    assert found["fused+compile"]["speedup"] == 4.0 and "compiled_speedup" not in found["plain"]


def test_ours_and_pytorch_s_own_are_compiled_where_the_idiom_is(monkeypatch):
    for name, wanted in (("fused+compile", "fused"), ("plain+compile", "plain")):
        monkeypatch.setattr(torch, "compile", lambda apply, **_: apply)
        case = Case("relu", "GUIDED")
        x, g = providers.tensors(1000, torch.float32)
        made = providers._MAKERS[name](case, x.dtype, x.device)
        if isinstance(made, providers.Skipped):
            assert "show_config()" in made.reason
            continue
        assert made.name == name
        gate.check(made, case, x, g, gate.expected(case, x, g)[wanted])
    made = providers._MAKERS["fused+compile"](Case("gelu", "GUIDED"), torch.float32, x.device)
    assert "for few cases" in made.reason or "show_config()" in made.reason


def test_what_is_left_out_leaves_out_the_forms_that_compete_for_it():
    made = providers.build(Case("relu", "reverse"), torch.float32, {"eager-best": "not wanted"})
    reasons = {one.name: getattr(one, "reason", None) for one in made}
    assert reasons["eager-best"] == reasons[providers.HOOK] == "not wanted"


def test_what_a_compiler_does_not_build_is_named():
    for case, device, why in (
        (Case("gelu", "GUIDED"), "cpu", "compiled for few cases"),
        (Case("tanh", "reverse"), "cpu", "no compiled backward is written for tanh/reverse"),
        (Case("relu", "rectgrad"), "cpu", "no compiled backward is written for relu/rectgrad"),
        (Case("relu", "GUIDED"), "cuda", "see idiom\\+compile"),
    ):
        made = providers._strongest_compiled(case, torch.float32, torch.device(device))
        assert re.search(why, made.reason)


@pytest.mark.parametrize("case", [Case("relu", "GUIDED"), Case("tanh", "reverse")])
def test_no_provider_changes_the_gradients_that_come_after_it(case):
    x, g = providers.tensors(1000, torch.float32)
    without = dict.fromkeys(providers.COMPILED, "a compilation takes too long for a test")
    passed, left_out = gate.gated(providers.build(case, x.dtype, without), case, x, g)
    assert not [name for name, row in left_out.items() if "refused" in row]
    for provider in passed.values():
        for _ in range(3):
            provider.step(x, g)
    (gx,) = torch.autograd.grad(F.relu(x), x, g)
    assert torch.equal(gx, g * (x > 0))


def test_gate_refuses_a_provider_that_leaves_a_hook():
    case = Case("relu", "GUIDED")
    x, g = providers.tensors(1000, torch.float32)
    wanted = gate.expected(case, x, g)["fused"]

    def step(x, g):
        x.register_hook(lambda gx: None)
        return wanted

    with pytest.raises(gate.GateError, match="left a hook on its input"):
        gate.check(_wrong(step), case, x, g, wanted)
    assert not x._backward_hooks


def test_a_peer_that_is_not_installed_is_named_with_the_cure(monkeypatch):
    monkeypatch.setitem(peers.PACKAGES, "captum", "a_package_that_is_nowhere")
    made = {p.name: p for p in providers.build(Case("relu", "GUIDED"), torch.float32)}
    assert made["captum"].reason.startswith("captum is not installed: `pip install --no-deps")


def test_a_peer_that_does_not_load_is_named_with_its_error(monkeypatch):
    def broken(case, dtype):
        raise OSError("no such library")

    monkeypatch.setitem(providers._MAKERS, "zennit", providers._peer("zennit", broken))
    made = {p.name: p for p in providers.build(Case("relu", "GUIDED"), torch.float32)}
    assert made["zennit"].reason == "it did not load: OSError: no such library"


def test_ours_that_raises_is_refused_and_not_skipped():
    def broken(x, g):
        raise RuntimeError("no kernel")

    made = [providers.Provider(name, broken) for name in ("fused", "captum")]
    x, g = providers.tensors(100, torch.float32)
    passed, left_out = gate.gated(made, Case("relu", "GUIDED"), x, g)
    reason = "it raised RuntimeError: no kernel"
    assert not passed
    assert left_out == {"fused": {"refused": reason}, "captum": {"skipped": reason}}


def test_versions_are_those_of_the_registry_names():
    assert set(peers.versions()) == set(peers.PACKAGES)
    for name, version in peers.versions().items():
        if version is not None:
            assert version == importlib.metadata.version(name)


def test_packages_whose_init_is_left_out_stay_importable():
    if importlib.util.find_spec("zennit") is None:
        pytest.skip("zennit is not installed")
    code = (
        "import sys; from bench import peers; peers.zennits_modules(); "
        "print([name for name in sys.modules if name.startswith('zennit')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("rule", [rule for rule in cases.RULES if rule != "EXACT"])
@pytest.mark.parametrize("activation", ["relu", "silu", "tanh", "leaky_relu"])
def test_idioms_agree_with_the_reference(activation, rule):
    case = Case(activation, rule)
    x, g = providers.tensors(1000, torch.float32)
    wanted = gate.expected(case, x, g)
    others = [name for name in providers.NAMES if name not in ("idiom", "eager-best")]
    idle = dict.fromkeys(others, "not an idiom")
    for provider in providers.build(case, torch.float32, idle):
        if isinstance(provider, providers.Provider):
            gate.check(provider, case, x, g, wanted[provider.name])


def _wrong(step):
    return providers.Provider("wrong", step)


def test_gate_refuses_a_plain_gradient_under_a_modified_rule():
    case = Case("relu", "GUIDED")
    x, g = providers.tensors(1000, torch.float32)

    def step(x, g):
        y = F.relu(x)
        return y, torch.autograd.grad(y, x, g)[0]

    with pytest.raises(gate.GateError, match="wrong gives a wrong gradient on relu/GUIDED"):
        gate.check(_wrong(step), case, x, g, gate.expected(case, x, g)["fused"])


def test_gate_refuses_a_wrong_value():
    case = Case("relu", "GUIDED")
    x, g = providers.tensors(1000, torch.float32)
    y, gx = gate.expected(case, x, g)["fused"]
    with pytest.raises(gate.GateError, match="wrong gives a wrong value on relu/GUIDED"):
        gate.check(_wrong(lambda x, g: (y + 0.01, gx)), case, x, g, (y, gx))


def test_gate_refuses_another_dtype():
    case = Case("relu", "GUIDED")
    x, g = providers.tensors(1000, torch.bfloat16)
    y, gx = gate.expected(case, x, g)["fused"]
    with pytest.raises(gate.GateError, match=r"wrong gives a value in torch\.float32"):
        gate.check(_wrong(lambda x, g: (y.float(), gx)), case, x, g, (y, gx))


def test_gate_refuses_a_provider_that_overwrites_its_inputs():
    case = Case("relu", "DECONVNET")
    x, g = providers.tensors(1000, torch.float32)
    y, gx = gate.expected(case, x, g)["fused"]
    with pytest.raises(gate.GateError, match="wrote into its inputs"):
        gate.check(_wrong(lambda x, g: (y, g.clamp_min_(0))), case, x, g, (y, gx))


@pytest.mark.parametrize("place", (0, 1 << 20, (1 << 21) - 1))
def test_gate_looks_at_all_of_a_large_tensor(place):
    case = Case("relu", "GUIDED")
    x, g = providers.tensors(1 << 21, torch.float32)
    y, gx = gate.expected(case, x, g)["fused"]
    gate.check(_wrong(lambda x, g: (y, gx)), case, x, g, (y, gx))
    other = gx.clone()
    other[place] += 100
    with pytest.raises(gate.GateError, match="wrong gives a wrong gradient"):
        gate.check(_wrong(lambda x, g: (y, other)), case, x, g, (y, gx))


def test_what_goes_wrong_while_it_is_timed_gets_no_time(monkeypatch):
    case, calls = Case("relu", "GUIDED"), []
    right = providers._fused(case, torch.float32, torch.device("cpu"))
    if isinstance(right, providers.Skipped):
        pytest.skip(right.reason)

    def step(x, g):
        calls.append(1)
        y, gx = right.step(x, g)
        return y, gx if len(calls) < 3 else gx + 1

    told = command.settings_of(command._parser().parse_args(["--quick", "--filter", "GUIDED"]))
    made = [providers.Provider("fused", right.step), providers.Provider("idiom", step)]
    made += [providers.Skipped(name, "not asked for") for name in providers.NAMES[2:]]
    made += [providers.Skipped("fused-triton", "not asked for")]
    told["allocations"] = "reused"
    rows = {row["provider"]: row for row in worker._cell(case, made, "float32", 1000, told)}
    assert "median_s" in rows["fused"] and "median_s" not in rows["idiom"]
    assert "wrong gradient" in rows["idiom"]["refused"]


needs_native = pytest.mark.skipif(backends.native() is None, reason="the library is not built")


@needs_native
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_every_kernel_passes_its_gate(dtype):
    for kernel in kernels.kernels(None, compute=True):
        x, g = (t.detach() for t in providers.tensors(4099, getattr(torch, dtype)))
        kernels.check(kernel, x, g, gate.expected(kernel.case, x, g)["fused"])


@needs_native
def test_a_kernel_that_writes_nothing_or_a_wrong_mask_has_no_time(monkeypatch):
    own = backends.native()

    class Idle:
        value, unpacked = staticmethod(own.value), staticmethod(own.unpacked)

        @staticmethod
        def value_and_mask(x, pair):
            y, mask = own.value_and_mask(x, pair)
            return y, mask ^ 1

        @staticmethod
        def backward(g, kept, pair, more):
            return torch.empty_like(g)

    chosen_by = types.SimpleNamespace(choose=lambda x, pair: Idle)
    monkeypatch.setattr(kernels, "backends", chosen_by)
    chosen = list(kernels.kernels(re.compile("relu/(reverse|DECONVNET)").search, compute=False))
    measured = kernels.measure(chosen, "float32", 1 << 12, timing.Effort(0.01, 3, 3, 1e-5))
    rows = {row["kernel"]: row for row in measured}
    said = {name: row.get("refused") for name, row in rows.items()}
    assert said["relu/reverse backward"].endswith("relu/reverse backward gives a wrong gradient")
    assert said["relu/reverse forward"].endswith("relu/reverse forward gives a wrong mask")
    assert said["relu/DECONVNET forward"] is None and "share" in rows["relu/DECONVNET forward"]
    assert not any("median_s" in row for row in rows.values() if "refused" in row)
