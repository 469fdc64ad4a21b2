"""The order of tokens, best first: by value, equal ones by id.

It is total, so that "the best k" is one set, however it is found. A value and an id make one integer:

    bits   63 ................ 32   31 ............. 0
           value, order-preserving  largest id - id
"""

import torch
from torch import Tensor

__all__ = ["best_first"]


def best_first(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[R, V] float32 -> the best `count` of each row, in order: values and ids, both [R, count].

    What is not a number stands anywhere.
    """
    vocabulary = values.shape[-1]
    bits = (values + 0.0).view(torch.int32)  # -0.0 becomes 0.0: they are equal
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # negative numbers count downwards: turned round
    keys <<= 32
    keys += torch.arange(vocabulary - 1, -1, -1, device=values.device)
    keys = _largest(keys, count)
    ids = (vocabulary - 1) - (keys & 0xFFFFFFFF)
    return values.gather(-1, ids), ids


def _largest(keys: Tensor, count: int) -> Tensor:
    """[R, V] int64, which it overwrites -> [R, count], in order."""
    vocabulary = keys.shape[-1]
    if keys.device.type != "cpu":
        return keys.topk(count, dim=-1).values if count < vocabulary else keys.sort(dim=-1, descending=True).values
    numbers = keys.numpy()  # numpy's sort uses wide registers: 20 times as fast as torch's
    if count < vocabulary:
        numbers.partition(vocabulary - count, axis=-1)
        numbers = numbers[:, vocabulary - count :]
    numbers.sort(axis=-1)
    return torch.from_numpy(numbers[:, ::-1].copy())
