"""Types of the C core. Arrays must be C-contiguous and of the dtype named; nothing is converted here."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

OPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Operation -> (names of its parameters, names of its weights)."""
ACTIVATIONS: tuple[str, ...]
POOLS: tuple[str, ...]
ROWS: tuple[str, ...]
"""Of an item, that a sub-layer works on."""
FILTERS: tuple[str, ...]
ROW_KINDS: tuple[str, ...]
"""What the rows of an item in a slot are."""
ISAS: tuple[str, ...]
PRECISIONS: tuple[str, ...]

class Program:
    """An immutable list of operations over packed weights; runs from many threads at once."""

    def __new__(cls, gemm: str | None = None, precision: str = "float32") -> Program: ...
    def slot(self, name: str, rows: int, cols: int, kind: int = 0, /) -> int:
        """A matrix per item, whose rows are of that place in ROW_KINDS: as many in every call; the padded text length
        after `rows` learned queries, there when the call gives contexts; the patches of each picture after `rows`
        class tokens; or its squares of `rows` x `rows` patches."""
    def add(
        self,
        op: str,
        src: int,
        dst: int,
        params: dict[str, float],
        weights: dict[str, NDArray[np.float32]],
        num_threads: int,
        /,
    ) -> None:
        """Appends a record: checks shapes, packs weights. ValueError, MemoryError."""
    def run(self, inputs: dict[str, Any], outputs: list[str], num_threads: int, /) -> dict[str, Any]:
        """Named slots as arrays (B, cols) or (B, rows, cols), "@12" for what record 12 leaves in its slot; "context" as
        a list of B Context, without a text's padding ("padded_context": with it). Inputs are arrays, "contexts" a list
        of B Context, "cache" a Cache, which grows by the tokens given. ValueError names the input, found, expected."""
    def plan(self, inputs: dict[str, Any], outputs: list[str], num_threads: int, /) -> list[str]:
        """What `run` would do of the same call, a line for each phase: what is done row by row between two barriers."""
    def map(self, buffer: Any, /) -> None:
        """Weights lie in `buffer`, which the program holds on to; add() then takes shapes (lists) for arrays."""
    def blocks(self) -> list[NDArray[np.uint8]]:
        """The weights in order, as read-only arrays that keep the program alive."""
    def info(self) -> dict[str, Any]: ...

class Context:
    """Keys and values of one item for cross-attention of another program; immutable."""

    @property
    def rows(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Cache:
    """Keys and values of the tokens so far, for every causal block of a program; one call at a time."""

    def __new__(cls, program: Program, items: int, capacity: int, /) -> Cache: ...
    @property
    def length(self) -> int: ...
    def reorder(self, items: NDArray[np.int64], /) -> None:
        """Item i becomes what item items[i] was."""

def config() -> dict[str, Any]: ...
def usable_isas() -> tuple[str, ...]:
    """Levels this machine runs, lowest first."""

def set_isa(name: str | None = None, /) -> None: ...
def checksum(buffer: Any, num_threads: int, /) -> int:
    """64 bits over a multiple of 64 bytes."""

def trim() -> None:
    """Gives memory that nobody uses back to the system."""

def default_threads() -> int: ...
def preprocess(
    out: NDArray[np.float32], job: tuple[NDArray[np.uint8], int, int, int, int, int], table: NDArray[np.float32], /
) -> None:
    """(image [H, W, >= C], resized height, width, filter, top, left) and a (C, 256) table into out (C, out_height,
    out_width), on the calling thread, without the GIL."""

def arrow_pixels(capsule: Any, height: int, width: int, /) -> NDArray[np.uint8]:
    """The memory of a PIL image of four bytes a pixel, from its `__arrow_c_array__`: (height, width, 4)."""

def resize(
    image: NDArray[np.uint8], height: int, width: int, filter: int, top: int, left: int, /
) -> NDArray[np.uint8]: ...
def resize_floats(image: NDArray[np.float32], height: int, width: int, filter: int, /) -> NDArray[np.float32]:
    """[H, W, C] resampled as torchvision does, nothing rounded in between."""

def stb_decode(data: bytes, max_pixels: int, /) -> NDArray[np.uint8]: ...
def log_mel(
    sound: NDArray[np.float32],
    window: NDArray[np.float64],
    filters: NDArray[np.float64],
    length: int,
    hop: int,
    center: bool,
    mels_first: bool,
    remove_mean: bool,
    amplitudes: bool,
    emphasis: float,
    floor: float,
    scale: float,
    num_threads: int,
    /,
) -> NDArray[np.float32]:
    """scale * log(max(energies, floor)) of the frames of sound [n]: window [frame], filters [length / 2 + 1, mels];
    (frames, mels), or (mels, frames). `center`: frames about i * hop, the ends mirrored; `remove_mean`: of each
    frame; `amplitudes`: scale * log(sums of amplitudes + floor)."""

def search(
    rows: NDArray[Any],
    scales: NDArray[np.float32] | None,
    mask: NDArray[np.bool_] | None,
    queries: NDArray[np.float32],
    k: int,
    num_threads: int,
    /,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k rows (n, D) of the largest products with each query (Q, D), best first: scores and row numbers (Q, k), -inf
    and -1 where there are fewer. Rows are float32, bfloat16 as uint16, int8 that `scales` (n,) multiply, or signs as
    np.packbits packs them (n, ceil(D / 8)) uint8, whose products are over D; where `mask` (n,) is False they are passed
    over."""

def set_openblas_path(path: str, /) -> None: ...
def matmul_nt(a: NDArray[np.float32], b: NDArray[np.float32], num_threads: int, /) -> NDArray[np.float32]:
    """a @ b.T by OpenBLAS."""

def alloc_fail_at(n: int, /) -> None: ...
def alloc_live() -> int: ...
def _test_kernel(
    name: str, out: NDArray[np.float32], arrays: tuple[Any, ...], numbers: tuple[float, ...], /
) -> None: ...
def _test_scratch(n: int, k: int, precision: int = 0, /) -> dict[str, int]: ...
