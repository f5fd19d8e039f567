"""Several processes that train one generator, started by torchrun.

Each process, a rank, holds the same networks, data and random numbers, and draws the same
minibatch. It keeps its own rows of it:

    own         rows of a minibatch that belong to this rank
    gathered    the whole of what each rank has some rows of
    of_all      the result of a function of the whole minibatch, such as a plan, by one rank
    by_first    what the first rank finds alone, such as the survey of a whole file
    averaged_   gradients, whose mean over the ranks is that of the whole minibatch
    normalised_by_all   BatchNorm with the statistics of the whole minibatch

With one process each of these does nothing. Messages go through gloo, on GPUs through NCCL.
"""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PATIENCE = timedelta(days=7)  # with a rank that computes; one that has ended is noticed at once
SMALL = 2**18  # entries of all ranks, up to which sums are gathered instead of reduced
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
    store, number, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    store = dist.PrefixStore(_start(store, number, world), store)
    options = {"store": store, "rank": number, "world_size": world, "timeout": PATIENCE}
    with _heard():
        dist.init_process_group("nccl" if cuda else "gloo", **options)
    try:
        with _ended_by_torchrun():
            yield
    finally:
        dist.destroy_process_group()
        time.sleep(0.2)  # gloo's threads drop their last tensors, which aborts a Python that ends


def _start(store: dist.Store, number: int, world: int) -> str:
    """A name that the ranks of this start share, and none before it had.

    torchrun's store outlives its workers, whose addresses are left in it, and its count of restarts
    is each machine's own. So each rank asks by a word of its own, until the first has answered all.
    """
    word = uuid.uuid4().hex
    store.set(f"asks{number}", word)
    if number:
        name = store.get(f"answer{word}").decode()
        store.set(f"heard{name}{number}", "")
        return name
    others = range(1, world)
    while not store.check([f"heard{word}{k}" for k in others]):
        for k in others:
            if store.check([f"asks{k}"]):
                store.set(f"answer{store.get(f'asks{k}').decode()}", word)
        time.sleep(0.05)
    return word


@contextmanager
def _heard():
    """Lost for a message that another rank does not answer any more."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no error of their own for this
        reason = str(error).partition("\n")[0]
        name = os.environ.get("RANK", "0")
        raise Lost(f"rank {name} stops, as another one has ended ({reason})") from None


@contextmanager
def _ended_by_torchrun():
    """Lost where torchrun ends this process, as it does when another one has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_) -> None:
        raise Lost(f"rank {rank()} stops, as another one has ended (torchrun says so)")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Lost:
        before = signal.SIG_IGN  # the process ends by itself, with a line that says why
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def own(x: Tensor) -> Tensor:
    """This rank's rows of x (n, ...)."""
    ends = [len(x) * k // count() for k in (rank(), rank() + 1)]
    return x[slice(*ends)] if count() > 1 else x


def gathered(x: Tensor) -> Tensor:
    """The rows of all ranks, which have as many each; no gradient."""
    if count() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count())]
    with _heard():
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
        with _heard():
            dist.broadcast_object_list(found)
    return found[0]


def any_of(flag: bool) -> bool:
    """Whether it is true for some rank."""
    if count() == 1:
        return flag
    found = [None] * count()
    with _heard():
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
    with _heard():
        dist.all_reduce(total)
    return total


class _Whitened(torch.autograd.Function):
    """x less the mean of its channel over all ranks' rows, in units of their standard deviation.

    It also gives the mean, the variance and the number of entries of a channel, without gradients.
    There is one message each way.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, ...]:
        ctx.others = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1 if axis in ctx.others else -1 for axis in range(x.ndim)]
        found = x.new_zeros(2, x.shape[1])  # of a rank that has no rows
        if len(x):
            found = torch.stack(torch.var_mean(x, ctx.others, correction=0))
        count = x.new_full((1,), x.numel() / x.shape[1])
        found = gathered(torch.cat((found.ravel(), count))[None])
        counts, (variances, means) = found[:, -1:], found[:, :-1].chunk(2, 1)
        ctx.count = counts.sum()
        share = counts / ctx.count
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        scale = (variance + eps).rsqrt().view(shape)
        x = (x - mean.view(shape)) * scale
        ctx.save_for_backward(x, scale)
        ctx.mark_non_differentiable(mean, variance, ctx.count)
        return x, mean, variance, ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor, None]:
        x, scale = ctx.saved_tensors
        sums = [z.sum(ctx.others, keepdim=True) for z in (grad, grad * x)]
        shift, slope = _summed(torch.stack(sums)) / ctx.count
        return scale * (grad - shift - slope * x), None


class _GlobalNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose statistics in training are those of all ranks' rows."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or count() == 1:
            return super().forward(x)
        x, mean, variance, n = _Whitened.apply(x, self.eps)
        self.num_batches_tracked += 1
        rate = self.momentum or 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * (n / (n - 1)), rate)
        if not self.affine:
            return x
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        return torch.addcmul(self.bias.view(shape), x, self.weight.view(shape))


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
    if "TORCHELASTIC_RUN_ID" in os.environ:
        (folder / MARK).write_text(_agent())


def restarted_folder(parent: str | Path) -> str:
    """The folder that this torchrun's processes had before they were started again, or ""."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    marks = [mark for mark in Path(parent).glob(f"*/{MARK}") if mark.read_text() == _agent()]
    return str(max(marks, key=lambda mark: mark.stat().st_mtime).parent) if marks else ""


def _agent() -> str:
    """What names the torchrun that started this process: also its start, where /proc tells it."""
    names = [os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR")]
    try:
        status = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2]
        names.append(status.split()[19])
    except (OSError, IndexError):
        pass
    return "-".join([*names, str(os.getppid())])
