"""Random numbers of a step: the same for all processes together as for one with the whole batch."""

import torch

from adapters.networks.step_rng import StepRng


def test_two_processes_draw_the_rows_of_one() -> None:
    whole = StepRng(3)
    parts = [StepRng(3, rank=rank, processes=2) for rank in range(2)]
    for _ in range(2):
        both = torch.cat([part.per_image(2, 5) for part in parts])
        assert torch.equal(both, whole.per_image(4, 5))
        shared = whole.shared(3)
        assert all(torch.equal(part.shared(3), shared) for part in parts)
        order = whole.order(6)
        assert all(part.order(6) == order for part in parts) and sorted(order) == list(range(6))


def test_a_stream_goes_on_where_its_state_was_taken() -> None:
    draws = StepRng(1)
    draws.shared(4)
    state = draws.state_dict()
    later = StepRng(99)
    later.load_state_dict(state)
    assert torch.equal(later.per_image(3, 2), draws.per_image(3, 2))


def test_normal_numbers_are_of_each_image_whichever_process_has_it() -> None:
    like = torch.empty(4, 3, 20, 20)
    whole, parts = StepRng(3).normal(like), [StepRng(3, rank=rank, processes=2) for rank in range(2)]
    assert torch.equal(torch.cat([part.normal(like[:2]) for part in parts]), whole)
    assert abs(whole.mean()) < 0.1 and 0.9 < whole.std() < 1.1 and not torch.equal(whole[0], whole[1])
