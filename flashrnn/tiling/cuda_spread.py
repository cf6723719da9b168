"""Tilings of the CUDA schedule "a head spread over blocks" (csrc/cuda/spread*.hpp).

Each block of a head owns `units` of its units and some tiles of 16 rows of the batch at a time; the
blocks exchange h, or backward the gradients of the gates, once per step: through global memory and
a counter (a grid of blocks that are all resident), or through the shared memory of a cluster. While
one tile's part travels, a block computes the next tile's. A block's part of R is a grid of
tensor-core operands that its warps divide by columns (warps_n) and by terms (warps_k). Shared
memory is exact; registers are an estimate. What follows from a tiling is written once, for numbers
and for the solver's expressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from autotune import resources
from autotune.gpu import Gpu
from autotune.space import Prediction
from constrint import Model, either
from constrint.expression import Operand
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32
from flashrnn.emit.cuda import BACKWARD, CLUSTER, GRID, emit_spread
from flashrnn.tiling.cuda import LEFT_BYTES, RIGHT_BYTES, ROWS, WARP, CudaProblem

# Bytes of the sums of one column of operands: 16 per lane.
SUM_BYTES = 512
MOST_WARPS = 16
MOST_IN_FLIGHT = 2  # tiles of rows: the schedules take any number, registers for more are rare
# From this architecture on the compiler keeps the 16-bit halves of R's words apart, in a register
# each, until all that registers hold is loaded, unless a loop over more of R follows.
HALVES_FROM = 100


@dataclass(frozen=True)
class SpreadTiling:
    """A solved tiling. exchange: GRID or CLUSTER; k tiles of 16 units, of 8 in float32.

    sum_parts: of the terms whose sums are in shared memory at once: warps_k, or 1, to which the
    others add in turn. tiles_in_flight: of 16 rows, which a group of blocks takes in turn.
    """

    exchange: str
    units: int
    blocks: int
    warps_n: int
    warps_k: int
    sum_parts: int
    k_tiles_in_registers: int
    tiles_in_flight: int = 1

    @property
    def warps(self) -> int:
        return self.warps_n * self.warps_k

    def as_config(self) -> dict[str, int]:
        """The tiling as a solution of the model, in which `clustered` tells the exchange."""
        config = asdict(self)
        return {"clustered": int(config.pop("exchange") == CLUSTER), **config}

    @classmethod
    def of_config(cls, config: Mapping[str, int]) -> SpreadTiling:
        """The tiling that a solution of either exchange's model means."""
        sizes = dict(config)
        return cls(CLUSTER if sizes.pop("clustered") else GRID, **sizes)


@dataclass(frozen=True)
class Sizes:
    """What follows from a problem and a tiling, as csrc/cuda/spread.hpp derives it.

    Numbers, or expressions over a model's variables.
    """

    problem: CudaProblem
    exchange: str
    units: Operand
    warps_n: Operand
    warps_k: Operand
    sum_parts: Operand
    held: Operand
    in_flight: Operand

    @property
    def warps(self) -> Operand:
        return self.warps_n * self.warps_k

    @property
    def columns_per_warp(self) -> Operand:
        """Tiles of 8 columns of R."""
        columns = self.units * self.problem.columns_per_tile // 8
        return _up(columns if self.problem.products else 1, self.warps_n)

    @property
    def k_per_warp(self) -> Operand:
        return _up(max(self.problem.k_tiles, 1), self.warps_k)

    @property
    def operands(self) -> Operand:
        """Of an exchange, padded to whole warps."""
        return self.k_per_warp * self.warps_k

    @property
    def units_per_lane(self) -> Operand:
        """Of a group: units in eights, else in fours."""
        return self._by_eights(2, 1)

    @property
    def groups(self) -> Operand:
        """Groups of units of the busiest warp."""
        return self._by_eights(_up(self.units // 8, self.warps), _up(self.units // 4, self.warps))

    @property
    def elements(self) -> Operand:
        """Units times rows of a lane of the busiest warp."""
        return 2 * self.units_per_lane * self.groups

    def _by_eights(self, eights: Operand, fours: Operand) -> Operand:
        """The one where units come in eights, the other where they come in fours."""
        if isinstance(self.units, int):
            return eights if self.units % 8 == 0 else fours
        return either(self.units % 8 == 0, eights, fours)

    @property
    def shared_bytes(self) -> Operand:
        """Of shared memory per block, as the schedule lays them out."""
        problem = self.problem
        constants = len(problem.program.weights)
        if problem.direction != BACKWARD:
            constants += len(problem.program.cell.gates)
        needed = _up(4 * constants * self.units, 16) * 16
        if not problem.products:
            return needed
        if self.exchange == CLUSTER:
            needed = needed + self.in_flight * (2 * self.operands * LEFT_BYTES + 16)
        rest = self.warps_k * (self.k_per_warp - self.held) * RIGHT_BYTES
        columns = self.warps_n * self.columns_per_warp
        return needed + columns * (self.in_flight * self.sum_parts * SUM_BYTES + rest)

    @property
    def registers(self) -> Operand:
        """Per thread, R's operands included; an estimate.

        Fitted to where NVRTC 13.5 began to spill; docs/cuda.md has the figures. A warp's groups of
        units follow one another: beside one in its turn are Wx and states of the others.
        """
        cell = self.problem.program.cell
        G, S = len(cell.gates), len(cell.states)
        others = self.groups - 1
        if self.problem.direction == BACKWARD:
            needed = 58 + 5 * G + 15 * S + 3 * self.sum_parts + 22 * others
        else:
            wide = self.problem.dtype.bytes == 4
            first, other = (3, 14) if wide else (0, 7)  # of each gate of Wx
            needed = 41 + 9 * self.units_per_lane + 22 * max(S - 2, 0)
            needed = needed + (4 + other * len(cell.input)) * others + first * len(cell.input)
            needed = needed + 5 * self.columns_per_warp
        return needed + self.words + (self.in_flight - 1) * self.registers_per_tile

    @property
    def registers_per_tile(self) -> Operand:
        """That each tile of rows in flight beside the first adds; an estimate, fitted alike."""
        S = len(self.problem.program.cell.states)
        return (28 if self.problem.direction == BACKWARD else 16) + 3 * S * self.elements

    @property
    def words(self) -> Operand:
        """Registers of R's operands."""
        return 2 * self.columns_per_warp * self.held


def _up(a: Operand, b: Operand) -> Operand:
    """a / b, rounded up."""
    return -(-a // b)


def sizes(problem: CudaProblem, tiling: SpreadTiling) -> Sizes:
    """Those of a solved tiling, all of them numbers."""
    return Sizes(
        problem, tiling.exchange, tiling.units, tiling.warps_n, tiling.warps_k, tiling.sum_parts,
        tiling.k_tiles_in_registers, tiling.tiles_in_flight,
    )  # fmt: skip


def allowed_units(problem: CudaProblem) -> tuple[int, ...]:
    """Units that a block can own: eights; forward also fours, where gates come in pairs."""
    fours = problem.direction != BACKWARD and problem.dtype != FLOAT32
    step = 4 if fours and problem.products % 2 == 0 and problem.products else 8
    return tuple(range(step, 8 * problem.tiles + 1, step))


def most_in_flight(problem: CudaProblem) -> int:
    """Tiles of rows that blocks may take in turn: as there are; one where nothing is exchanged."""
    tiles = max(1, -(-problem.dims.B // ROWS))
    return min(tiles, MOST_IN_FLIGHT) if problem.products else 1


def model(problem: CudaProblem, gpu: Gpu, exchange: str, spare: int = 0) -> Model:
    """Every tiling that fits the GPU with an exchange; spare as in `cuda.model`."""
    name = f"{problem.program.cell.name} {problem.direction}, a {exchange} of blocks"
    m = Model(f"{name}, on sm_{gpu.sm}")
    m.int_var("clustered", (int(exchange == CLUSTER),))  # which tells a solution's exchange
    units = m.int_var("units", allowed_units(problem))
    most = gpu.sms if exchange != CLUSTER else gpu.architecture.cluster_blocks
    blocks = m.int_var("blocks", range(1, max(most, 1) + 1))
    warps_n = m.int_var("warps_n", (1, 2, 4, 8))
    warps_k = m.int_var("warps_k", (1, 2, 4, 8))
    parts = m.int_var("sum_parts", (1, 2, 4, 8))
    held = m.int_var("k_tiles_in_registers", range(max(problem.k_tiles, 1) + 1))
    in_flight = m.int_var("tiles_in_flight", range(1, most_in_flight(problem) + 1))
    if exchange == CLUSTER:  # no kernel launched without one may store to a cluster
        few = f"clusters, which sm_{gpu.sm} does not have"
        m.add(blocks >= 2, name=few if most < 2 else "a cluster has two blocks or more")
    where = "resident at once" if exchange != CLUSTER else "of a cluster"
    m.add(blocks * units >= problem.dims.D, name=f"the {most} blocks {where} have all units")
    m.add((blocks - 1) * units < problem.dims.D, name="every block has units")
    m.add(warps_n * warps_k <= MOST_WARPS, name="warps per block")
    m.add((parts - 1) * (parts - warps_k) == 0, name="sums of one part or of all")
    derived = Sizes(problem, exchange, units, warps_n, warps_k, parts, held, in_flight)
    m.add(held <= (derived.k_per_warp if problem.products else 0), name="R has so many operands")
    resources.constrain(
        m, gpu.architecture, threads=WARP * derived.warps, registers=derived.registers + spare,
        shared_bytes=derived.shared_bytes,
    )  # fmt: skip
    if problem.direction == BACKWARD and problem.dtype != FLOAT32 and gpu.sm >= HALVES_FROM:
        loading, cap = derived.registers + derived.words, gpu.architecture.registers_per_thread
        m.add(
            (derived.k_per_warp - held >= 2) | (loading <= cap),
            name="registers per thread while R is loaded",
        )
    return m


def predict(problem: CudaProblem, tiling: SpreadTiling) -> Prediction:
    """What the compiler will need."""
    s = sizes(problem, tiling)
    registers, shared = s.registers, s.shared_bytes
    assert isinstance(registers, int) and isinstance(shared, int)
    return Prediction(registers, shared, WARP * tiling.warps)


def exchange_bytes(problem: CudaProblem, tiling: SpreadTiling) -> int:
    """Bytes of global memory that one group of blocks exchanges through; 0 in a cluster."""
    if tiling.exchange == CLUSTER or not problem.products:
        return 0
    operands = sizes(problem, tiling).operands
    assert isinstance(operands, int)
    return tiling.tiles_in_flight * 2 * operands * LEFT_BYTES


def items(dims: Dims, tiling: SpreadTiling) -> int:
    """What groups of blocks take: heads times as many tiles of 16 rows as are in flight."""
    return dims.N * -(-dims.B // (ROWS * tiling.tiles_in_flight))


def groups(problem: CudaProblem, tiling: SpreadTiling, gpu: Gpu) -> int:
    """Groups of blocks in a launch: all items, or as many as are resident at once."""
    return min(items(problem.dims, tiling), gpu.sms // tiling.blocks)


def products_per_step(problem: CudaProblem, tiling: SpreadTiling) -> int:
    """Tensor-core instructions of one warp in one step of all tiles in flight."""
    if not problem.products:
        return 0
    s = sizes(problem, tiling)
    count = s.columns_per_warp * s.k_per_warp * s.in_flight
    assert isinstance(count, int)
    return count


def source_of(problem: CudaProblem, tiling: SpreadTiling) -> str:
    """The kernel's source for this tiling."""
    return emit_spread(
        problem.program, problem.direction, problem.dtype, D=problem.dims.D, **asdict(tiling)
    )
