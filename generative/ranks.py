"""Several processes that train one generator, started by torchrun.

Each process, a rank, holds the same networks, data and random numbers, and draws the same
minibatch. It keeps its own rows of it:

    own         rows of a minibatch that belong to this rank
    gathered    the whole of what each rank has some rows of
    of_all      what a function of whole minibatches gives, computed by one rank: a plan is one of
                the whole minibatch
    by_first    what the first rank finds: where a file is looked at whole
    averaged_   gradients, whose mean over the ranks is that of the whole minibatch
    normalised_by_all   BatchNorm with the statistics of the whole minibatch

With one process each of these does nothing. Messages go through gloo, on GPUs through NCCL.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PATIENCE = timedelta(seconds=1800)  # with a rank that computes; one that has ended is noticed
SMALL = 2**18  # entries of all ranks together
MARK = ".torchrun"  # a file in a run's folder


class Lost(RuntimeError):
    """Another rank has ended, so that this one cannot go on."""


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined(cuda: bool):
    """The processes that torchrun has started, joined meanwhile; nothing without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # torchrun's store outlives its workers: addresses of those before a restart are left in it.
    store, number, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    options = {"store": store, "rank": number, "world_size": world, "timeout": PATIENCE}
    dist.init_process_group("nccl" if cuda else "gloo", **options)
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no error of their own for this
        reason = str(error).partition("\n")[0]
        raise Lost(f"rank {number} stops, as another one has ended ({reason})") from None
    finally:
        dist.destroy_process_group()


def own(x: Tensor) -> Tensor:
    """This rank's rows of x (n, ...)."""
    ends = [len(x) * k // count() for k in (rank(), rank() + 1)]
    return x[slice(*ends)] if count() > 1 else x


def gathered(x: Tensor) -> Tensor:
    """The rows of all ranks, which have as many each; no gradient."""
    if count() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def uniform(x: Tensor, rng: torch.Generator) -> Tensor:
    """A number in [0, 1) for each row of x (n, ...), (n, 1), of those drawn for all ranks' rows."""
    kind = {"generator": rng, "device": x.device, "dtype": x.dtype}
    return own(torch.rand(count() * len(x), 1, **kind))


def of_all(
    function: Callable[..., tuple[Tensor, ...]], *rows: Tensor | None, rng: torch.Generator
) -> tuple[Tensor, ...]:
    """What a function of whole minibatches returns, computed by the first rank.

    Of what has a row for each point this rank gets its own rows. The function may draw from rng,
    which is then the same for all.
    """
    if count() == 1:
        return function(*rows)
    rows = [x if x is None else gathered(x) for x in rows]
    *found, state = by_first(lambda: (*(x.cpu() for x in function(*rows)), rng.get_state().cpu()))
    rng.set_state(state)
    found = [x.to(rows[0].device) for x in found]
    return tuple(own(x) if x.ndim and len(x) == len(rows[0]) else x for x in found)


def by_first(function: Callable[[], object]):
    """What a function returns, or the ValueError that it raises, for all, from the first rank."""
    if count() == 1:
        return function()
    found = None
    if rank() == 0:
        try:
            found = function()
        except ValueError as error:
            found = error
    found = agreed(found)
    if isinstance(found, ValueError):
        raise found
    return found


def agreed(value):
    """The first rank's value, for all."""
    found = [value]
    if count() > 1:
        dist.broadcast_object_list(found)
    return found[0]


def any_of(flag: bool) -> bool:
    """Whether it is true for some rank."""
    if count() == 1:
        return flag
    found = [None] * count()
    dist.all_gather_object(found, flag)
    return any(found)


@torch.no_grad()
def averaged_(tensors: Iterable[Tensor | None]) -> None:
    """Each tensor becomes its mean over the ranks."""
    tensors = [x for x in tensors if x is not None]
    if count() == 1 or not tensors:
        return
    flat = _summed(torch.cat([x.ravel() for x in tensors])) / count()
    for x, mean in zip(tensors, flat.split([x.numel() for x in tensors])):
        x.copy_(mean.view_as(x))


def _summed(x: Tensor) -> Tensor:
    """The sum over the ranks; gloo gathers small tensors in half the time of all_reduce's ring."""
    x = x.contiguous()
    if dist.get_backend() == "gloo" and count() * x.numel() < SMALL:
        return gathered(x[None]).sum(0)
    total = x.clone()
    dist.all_reduce(total)
    return total


class _Whitened(torch.autograd.Function):
    """x less its mean, over its standard deviation, of each channel of all ranks' rows; and these
    statistics' mean and variance, without gradients. One message each way.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        ctx.others = [axis for axis in range(x.ndim) if axis != 1]
        own = torch.stack(torch.var_mean(x, ctx.others, correction=0, keepdim=True))
        variances, means = gathered(own[None]).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        scale = (variance + eps).rsqrt()
        x = (x - mean) * scale
        ctx.save_for_backward(x, scale)
        ctx.mark_non_differentiable(mean, variance)
        return x, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor, None]:
        x, scale = ctx.saved_tensors
        own = [z.mean(ctx.others, keepdim=True) for z in (grad, grad * x)]
        shift, slope = _summed(torch.stack(own)) / count()
        return scale * (grad - shift - slope * x), None


class _GlobalNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose statistics in training are those of all ranks' rows, as many from each."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or count() == 1:
            return super().forward(x)
        n = count() * x.numel() / x.shape[1]
        x, mean, variance = _Whitened.apply(x, self.eps)
        self.num_batches_tracked += 1
        rate = self.momentum or 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.ravel(), rate)
        self.running_var.lerp_(variance.ravel() * (n / (n - 1)), rate)
        if not self.affine:
            return x
        return torch.addcmul(self.bias.view_as(mean), x, self.weight.view_as(mean))


def normalised_by_all(network: nn.Module) -> nn.Module:
    """The network, whose BatchNorm layers take the statistics of all ranks from now on."""
    if count() > 1:
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.__class__ = _GlobalNorm
    return network


def is_first() -> bool:
    """Whether this process is the one that prints; also before and after ranks have joined."""
    return os.environ.get("RANK", "0") == "0"


def remember_folder(folder: Path) -> None:
    """Leave a mark by which processes that torchrun starts again find the run's folder."""
    if count() > 1:
        (folder / MARK).write_text(_agent())


def restarted_folder(parent: str | Path) -> str:
    """The folder that this torchrun's processes had before they were started again, or ""."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return ""
    marks = [mark for mark in Path(parent).glob(f"*/{MARK}") if mark.read_text() == _agent()]
    return str(max(marks, key=lambda mark: mark.stat().st_mtime).parent) if marks else ""


def _agent() -> str:
    """What names the torchrun that started this process."""
    names = "TORCHELASTIC_RUN_ID", "MASTER_ADDR"
    return "-".join([*(os.environ.get(name, "") for name in names), str(os.getppid())])
