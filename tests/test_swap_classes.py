"""Classes that a swap's own must stand for, and whose every method it must take."""

from __future__ import annotations

import abc
import typing

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrevgrad import GUIDED, swap
from pyrevgrad.attribution import GuidedBackprop
from pyrevgrad.swapping import ModelError

T = typing.TypeVar("T")


class Core:
    def __init__(self):
        nn.Module.__init__(self)
        self.a, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.act(self.a(x))


class Abstract(Core, abc.ABC, nn.Module):
    pass


class Typed(typing.Generic[T], Core, nn.Module):
    pass


class Child(Abstract):
    pass


class Tabular(Core, nn.Module, dict):
    __hash__ = nn.Module.__hash__


@pytest.mark.parametrize("cls", [Abstract, Typed, Child, Tabular])
def test_a_class_that_does_not_begin_as_a_module_can_be_swapped(cls):
    model, x = cls(), torch.randn(3, 4)
    wanted = GuidedBackprop(nn.Sequential(model.a, nn.ReLU())).attribute(x, target=1)
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, target=1), wanted)
    with swap(model, GUIDED) as swapped:
        assert "swap(GUIDED)" in repr(model) and isinstance(model, cls)
        model(x)
    assert type(model) is cls and len(swapped.report.replaced) == 1


def test_hooks_of_a_class_that_begins_as_abc_do_not_hear_of_the_swaps_own():
    registry = {}

    class Registering(abc.ABC, nn.Module):
        def __init_subclass__(cls, *, key, **rest):
            super().__init_subclass__(**rest)
            registry[key] = cls

    class One(Core, Registering, key="one"):
        pass

    model = One()
    with swap(model, GUIDED) as swapped:
        model(torch.randn(3, 4))
    assert registry == {"one": One} and len(swapped.report.replaced) == 1


@pytest.mark.parametrize("base", [type, abc.ABCMeta])
def test_a_metaclass_does_not_hear_of_the_swaps_own_class(base):
    made = []

    class Registry(base):
        def __new__(mcs, name, bases, body, **options):
            if made:
                raise ValueError(f"there is a {name} already")
            return super().__new__(mcs, name, bases, body, **options)

        def __init__(cls, *rest, **options):
            super().__init__(*rest, **options)
            made.append(cls)

    class Registered(Core, nn.Module, metaclass=Registry):
        pass

    model = Registered()
    with swap(model, GUIDED) as swapped:
        assert type(type(model)) is Registry and isinstance(model, Registered)
        assert not isinstance(nn.ReLU(), type(model)) and isinstance(model, type(model))
        model(torch.randn(3, 4))
    assert made == [Registered] and len(swapped.report.replaced) == 1
    # ABC's caches are each class's own.
    assert isinstance(Registered(), Registered) and not isinstance(nn.ReLU(), Registered)


class Checked(type(nn.Module)):
    def mro(cls):
        if "documented" not in vars(cls):
            raise TypeError("every class must be documented")
        return super().mro()


def test_a_class_that_allows_no_other_is_refused_by_name():
    class Strict(Core, nn.Module, metaclass=Checked):
        documented = True

    model = nn.Sequential(nn.ReLU(), Strict())
    sentence = r"cannot hold a .*Strict, .*no subclass made at run time: every class must be"
    with pytest.raises(ModelError, match=sentence):
        swap(model, GUIDED)
    assert type(model) is nn.Sequential and type(model[0]) is nn.ReLU and type(model[1]) is Strict


class Mixed:
    def encode(self, x):
        return F.relu(self.a(x))


class Mixing(nn.Module, Mixed):
    def __init__(self):
        super().__init__()
        self.a, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.act(self.a(x))


def test_a_method_of_a_class_mixed_in_behind_the_module_is_taken():
    model = Mixing()
    with swap(model, GUIDED, strict="all") as swapped:
        model.encode(torch.randn(2, 4)).sum().backward()
    assert [site.kind for site in swapped.report.replaced if site.backward] == ["relu"]
