"""One of two processes started by test_parallel.py: exchanges tensors and prints nothing unless an assertion fails."""

import torch
from accelerate.accelerator import Accelerator

from adapters.parallel import agree, average_buffers, average_gradients, check_replicated


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    check_replicated(accelerator)
    assert accelerator.num_processes == 2
    mine = float(accelerator.process_index)  # 0 and 1
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    parameters = list(network.parameters())
    for number, parameter in enumerate(parameters[:-1]):
        parameter.grad = torch.full_like(parameter, number + mine)
    average_gradients(accelerator, parameters)
    assert [parameter.grad.unique().tolist() for parameter in parameters[:-1]] == [[0.5], [1.5], [2.5]]
    assert parameters[-1].grad is None
    network[1].running_mean.fill_(4.0 * mine)
    network[1].num_batches_tracked.fill_(7)
    average_buffers(accelerator, network)
    assert network[1].running_mean.tolist() == [2.0, 2.0] and network[1].num_batches_tracked == 7
    assert agree(accelerator, 3 * mine, 0.5 - mine) == (3.0, 0.5)
    accelerator.end_training()


if __name__ == "__main__":
    main()
