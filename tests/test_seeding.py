"""Named random streams."""

import torch

from utils.seeding import derive_seed, generator, seeded


def test_a_name_has_one_seed_and_names_differ():
    names = [("member", k) for k in range(50)] + [("select", k) for k in range(50)] + [("member", 1, "data")]
    seeds = [derive_seed(0, *name) for name in names] + [derive_seed(1, *name) for name in names]
    assert len(set(seeds)) == 2 * len(names)
    assert derive_seed(3, "member", 1) == derive_seed(3, "member", 1)


def test_a_generator_does_not_depend_on_what_was_drawn_before():
    first = torch.rand(3, generator=generator(0, "a"))
    torch.rand(100, generator=generator(0, "b"))
    torch.rand(7)
    assert torch.equal(first, torch.rand(3, generator=generator(0, "a")))


def test_seeded_leaves_the_global_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with seeded(0, "member", 1):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with seeded(0, "member", 1):
        assert torch.equal(torch.rand(4), inside)
