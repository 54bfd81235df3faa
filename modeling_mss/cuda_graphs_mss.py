"""Steps of decoding as CUDA graphs: the host launches one graph where it would launch a thousand kernels.

A graph repeats what was launched while it was captured: with the same kernels, at the same addresses, with the same
numbers of the host. So a step has to keep its whole state, where it stands included, in tensors that stay where they
are, and the host must not wait for any of them.

**Off unless the environment variable `MSS_CUDA_GRAPHS` is 1** (absent or 0: off): this has never run on a GPU yet. Its
steps, and what replaying them gives, are tested on CPUs with recorded operations in place of a graph. It needs the
attention implementation `sdpa` (the default) or `eager`.
"""

import os
import threading
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn

SWITCH = "MSS_CUDA_GRAPHS"
WARM_UPS = 2  # libraries choose and load kernels in their first calls, which cannot be captured
MAX_KEPT = 2  # states of a model, each with its key-value cache
CAPTURING = threading.Lock()  # torch knows one capture at a time in a process

# Takes a function, and another one that undoes what a call of it has changed. Returns what repeats the call; the
# function may have been called, but every call is undone.
Capture = Callable[[Callable[[], object], Callable[[], None]], Callable[[], None]]


class CudaGraphCapture:
    """Captures functions as CUDA graphs.

    They share one pool of memory. That is safe in any order, as a graph leaves nothing there that another one reads.
    """

    def __init__(self, device: torch.device):
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        # Two streams: workspaces of cuBLAS belong to a stream, and those of a graph are to lie in its pool. Both have
        # high priority: torch hands out the same 32 streams of a priority again and again, and what runs beside a
        # graph, as the codec does, must not share its workspace.
        self.warm_up_stream, self.capture_stream = (torch.cuda.Stream(device, priority=-1) for _ in range(2))

    def __call__(self, function: Callable[[], object], undo: Callable[[], None]) -> Callable[[], None]:
        with CAPTURING, torch.cuda.device(self.device):
            self.warm_up_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.warm_up_stream):
                for _ in range(WARM_UPS):
                    function()
                    undo()
            torch.cuda.current_stream().wait_stream(self.warm_up_stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on allocating.
            options = {"pool": self.pool, "stream": self.capture_stream, "capture_error_mode": "thread_local"}
            with torch.no_grad(), torch.cuda.graph(graph, **options):
                function()
        return graph.replay


def graph_capture(model: nn.Module, device: torch.device) -> Capture | None:
    """How steps of a model that decodes on this device are captured; None if they are not.

    They are not without the switch, inside of another capture, under autocast (casts of weights are its own, and gone
    after it), in training mode (dropout), or where weights are on several devices.
    """
    if device.type != "cuda" or os.environ.get(SWITCH, "0") != "1" or model.training:
        return None
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if torch.is_autocast_enabled("cuda") or devices != {device}:
        return None
    with torch.cuda.device(device):
        return None if torch.cuda.is_current_stream_capturing() else CudaGraphCapture(device)


def places(model: nn.Module, device: torch.device) -> tuple:
    """What graphs hold on to besides the state: where and how all weights lie, the stream, and inference mode, whose
    tensors no other mode may write to."""
    tensors = [*model.parameters(), *model.buffers()]
    weights = tuple((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    return device, stream, torch.is_inference_mode_enabled(), weights


class GraphedCalls:
    """Calls functions; with a `capture`, functions are captured when first called, and replayed from then on.

    Args:
        capture: None to call plainly.
        changing: tensors that a call changes and that decide what the next one does.
    """

    def __init__(self, capture: Capture | None, changing: Sequence[torch.Tensor]):
        self.capture, self.changing = capture, changing
        self.replays: dict[Hashable, Callable[[], None]] = {}

    def __call__(self, key: Hashable, function: Callable[[], object]) -> None:
        """Call the function, or repeat the call of the one that had the same key: whatever differs between the two
        must lie in tensors."""
        if self.capture is None:
            function()
            return
        if key not in self.replays:
            values = [tensor.clone() for tensor in self.changing]

            def undo():
                for tensor, value in zip(self.changing, values):
                    tensor.copy_(value)

            self.replays[key] = self.capture(function, undo)
        self.replays[key]()


class KeptStates:
    """The states of a model whose graphs are kept, at most two. A copy of the model, in memory or in a file, starts
    with none.

    A state is taken out while it is used: two threads never share one.
    """

    def __init__(self):
        self.states = {}

    def __reduce__(self):
        return KeptStates, ()

    def take(self, key: Hashable):
        """The state of this key, or None; then there is room for another one."""
        state = self.states.pop(key, None)
        if state is None:
            self._leave(MAX_KEPT - 1)
        return state

    def keep(self, key: Hashable, state) -> None:
        self.states[key] = state
        self._leave(MAX_KEPT)

    def _leave(self, number: int) -> None:
        """Let go of those that have not been used for the longest time."""
        for key in list(self.states)[: max(len(self.states) - number, 0)]:
            self.states.pop(key, None)
