"""Tilings of the Triton schedules (emit/triton_fused.py, emit/triton_alternating.py).

Fused: a program keeps R of one head on the chip and runs the whole sequence for b_per_program
rows. R of gates_in_registers gates lies in registers, of the others in shared memory. Alternating:
a program is one tile of one step's pointwise part. Both leave to a later schedule how several
blocks may share a head: that is a model of its own, and `choose` takes the first that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from autotune import resources
from autotune.gpu import Gpu
from autotune.space import Prediction
from constrint import Infeasible, Model
from constrint.expression import Operand
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32, Dtype
from flashrnn.emit.triton import BACKWARD, IEEE, results_of
from flashrnn.ir.expression import Expression
from flashrnn.passes.lower import Program, pointwise_cost
from flashrnn.tiling import triton_needs as needs
from flashrnn.tiling.triton_needs import WARP

# Rows that the smallest product of the tensor cores has, and units that its operands have.
FEWEST_ROWS, FEWEST_UNITS = 16, 16
MOST_ROWS = 64
WARPS = (1, 2, 4, 8, 16)
# Of a tile in one thread: the estimate of registers was fitted up to here, and fails at twice it.
MOST_NUMBERS = 8
# Units that a warp must have of its own in a product: else warps compute the same.
UNITS_PER_WARP = 8
ELEMENTWISE_UNITS = (16, 32, 64, 128)
# Of the cost model: cycles that a step waits, for each gate's product, and backward for each number
# of a unit that it loads; and of the multiprocessor for each number of each gate's product. Fitted
# to 35 kernels of four cells on an H200, bfloat16, heads of 32 to 128, R in shared memory: 7 % off
# in the root mean square (tests/flashrnn/test_measured_steps.py).
STEP_CYCLES, GATE_CYCLES, LOAD_CYCLES, NUMBER_CYCLES = 1140.0, 1010.0, 644.0, 0.280
# Not measured: instructions for one unit of the op table's cost, the seconds of a launch.
INSTRUCTIONS, LAUNCH_SECONDS = 0.5, 4e-6
# Of the pointwise kernel: what each thread has, registers beside its values, and the bytes through
# which a row of biases is handed to the threads of every row (128 were taken before sm_90).
POINTWISE_NUMBERS, POINTWISE_REGISTERS, POINTWISE_SHARED = 4, 32, 1024


@dataclass(frozen=True)
class FusedTiling:
    """A solved tiling of the fused schedule. Units: rows of the batch, units of a head."""

    b_per_program: int
    d_per_program: int
    num_warps: int
    num_stages: int
    gates_in_registers: int

    def as_config(self) -> dict[str, int]:
        """The tiling as a solution of the model."""
        return asdict(self)

    @property
    def options(self) -> dict[str, int | bool]:
        """What the compiler is told."""
        return compiler_options(self.num_warps, self.num_stages)


@dataclass(frozen=True)
class AlternatingTiling:
    """A solved tiling of the alternating schedule's pointwise kernel."""

    b_per_program: int
    d_per_program: int
    num_warps: int

    def as_config(self) -> dict[str, int]:
        """The tiling as a solution of the model."""
        return asdict(self)

    @property
    def options(self) -> dict[str, int | bool]:
        """What the compiler is told."""
        return compiler_options(self.num_warps, 1)


Tiling = FusedTiling | AlternatingTiling
FUSED, ALTERNATING = "fused", "alternating"


def schedule_of(tiling: Tiling) -> str:
    """The schedule that a tiling is of."""
    return FUSED if isinstance(tiling, FusedTiling) else ALTERNATING


def tiling_of(config: Mapping[str, int]) -> Tiling:
    """The tiling that a solution of either schedule's model means."""
    fused = "gates_in_registers" in config
    return FusedTiling(**config) if fused else AlternatingTiling(**config)


def compiler_options(num_warps: int, num_stages: int) -> dict[str, int | bool]:
    """Always with a cap on registers: without one the assembler spills to reach an occupancy."""
    cap = min(255, 65536 // (WARP * num_warps))
    return {
        "num_warps": num_warps,
        "num_stages": num_stages,
        "maxnreg": cap,
        "enable_fp_fusion": True,
    }


@dataclass(frozen=True)
class TritonProblem:
    """What a tiling depends on: the cell, a direction, a dtype, sizes, precision of float32."""

    program: Program
    direction: str
    dtype: Dtype
    dims: Dims
    precision: str = IEEE

    @property
    def products(self) -> int:
        """Gates that R feeds by a dense product."""
        return len(self.program.cell.product_gates)

    @property
    def padded(self) -> int:
        """D as a product's operand has it: a power of two."""
        return max(FEWEST_UNITS, 1 << (self.dims.D - 1).bit_length())

    @property
    def roots(self) -> tuple[Expression, ...]:
        """What the pointwise part computes."""
        return results_of(self.program, self.direction)[1]

    @property
    def live(self) -> int:
        """The most values of it that exist at once."""
        return needs.live_values(self.roots)

    @property
    def fit(self) -> needs.Fit:
        """What registers are estimated from."""
        if self.products and not self.tensor_cores:
            return needs.PLAIN_BACKWARD if self.direction == BACKWARD else needs.PLAIN_FORWARD
        return needs.TENSOR_BACKWARD if self.direction == BACKWARD else needs.TENSOR_FORWARD

    @property
    def tensor_cores(self) -> bool:
        """Whether products run there; those of float32 as it is do not."""
        return self.dtype != FLOAT32 or self.precision != IEEE


@dataclass(frozen=True)
class Chosen:
    """The schedule for a problem, and what rules out the fused one if it is another."""

    tiling: Tiling
    reason: str = ""


def fused_model(problem: TritonProblem, gpu: Gpu) -> Model:
    """Every fused tiling that fits the GPU; none where R is too large for one program."""
    m = Model(f"{problem.program.cell.name} {problem.direction}, fused, on sm_{gpu.sm}")
    G, D = problem.products, problem.padded
    rows = min(MOST_ROWS, max(FEWEST_ROWS, 1 << (max(1, problem.dims.B) - 1).bit_length()))
    b = m.int_var("b_per_program", [r for r in (16, 32, 64) if r <= rows])
    units = [D] if G else [u for u in ELEMENTWISE_UNITS if u <= D]
    d = m.int_var("d_per_program", units)
    warps = m.int_var("num_warps", WARPS)
    # deeper pipelines of loads only added shared memory to every kernel that was compiled
    m.int_var("num_stages", [1])
    holds = problem.tensor_cores and needs.holds_r()
    held = m.int_var("gates_in_registers", range(G + 1) if holds else [0])
    if G and problem.tensor_cores:
        m.add(
            (warps * UNITS_PER_WARP <= d) & ((d > FEWEST_UNITS) | (warps == 1)),
            name="units for every warp",
        )
    elif G and problem.fit.most_words is not None:
        m.add(
            b * d * D <= problem.fit.most_words * WARP * warps,
            name="words per thread of a product outside the tensor cores",
        )
    m.add(b * d >= 2 * WARP * warps, name="two numbers of a tile for every thread")
    registers = _registers(problem, b, d, warps, held)
    resources.constrain(
        m, gpu.architecture, threads=WARP * warps, registers=registers,
        shared_bytes=_shared_bytes(problem, b, d, held),
    )  # fmt: skip
    m.add(b * d <= MOST_NUMBERS * WARP * warps, name="numbers of a tile per thread")
    return m


def alternating_model(problem: TritonProblem, _gpu: Gpu) -> Model:
    """Every tiling of the alternating schedule: what a program has is small on any GPU."""
    m = Model(f"{problem.program.cell.name} {problem.direction}, alternating")
    rows = 1 << (max(1, problem.dims.B) - 1).bit_length()
    b = m.int_var("b_per_program", [r for r in (1, 2, 4, 8, 16) if r <= rows])
    d = m.int_var("d_per_program", ELEMENTWISE_UNITS)
    warps = m.int_var("num_warps", (1, 2, 4))
    m.add(b * d == POINTWISE_NUMBERS * WARP * warps, name="numbers of a tile per thread")
    return m


def model(problem: TritonProblem, gpu: Gpu, schedule: str) -> Model:
    """Every tiling of a schedule that fits the GPU."""
    return (fused_model if schedule == FUSED else alternating_model)(problem, gpu)


def predict(problem: TritonProblem, tiling: Tiling) -> Prediction:
    """What the compiler will need."""
    threads = WARP * tiling.num_warps
    if isinstance(tiling, AlternatingTiling):
        numbers = tiling.b_per_program * tiling.d_per_program // threads
        passed = POINTWISE_SHARED if tiling.b_per_program > 1 else 0
        return Prediction(POINTWISE_REGISTERS + problem.live * numbers, passed, threads)
    sizes = tiling.b_per_program, tiling.d_per_program
    registers = _registers(problem, *sizes, tiling.num_warps, tiling.gates_in_registers)
    shared = _shared_bytes(problem, *sizes, tiling.gates_in_registers)
    assert isinstance(registers, int) and isinstance(shared, int)
    return Prediction(min(registers, tiling.options["maxnreg"]), shared, threads)


def _registers(
    problem: TritonProblem, b: Operand, d: Operand, warps: Operand, held: Operand
) -> Operand:
    states = len(problem.program.cell.states)
    staying = problem.products - held if problem.products else 0
    r_words = held * d * d * problem.dtype.bytes // 4
    return needs.registers(problem.fit, problem.live, states, staying, r_words, b * d, WARP * warps)


def _shared_bytes(problem: TritonProblem, b: Operand, d: Operand, held: Operand) -> Operand:
    if problem.direction == BACKWARD:  # an older Triton passes each gate's gradient on its own
        operands = 1 if needs.holds_r() else problem.products + 1
    else:
        operands = 2 if problem.tensor_cores else 1
    return needs.shared_bytes(problem.products, held, problem.dtype.bytes, b, d, operands=operands)


def fused_cost(problem: TritonProblem, tiling: FusedTiling, gpu: Gpu) -> float:
    """Estimated seconds of one call, to rank tilings by.

    In a step, the programs on a multiprocessor share its tensor cores, its arithmetic and the
    bandwidth of its shared memory, and each waits for its own latencies; the longest decides.
    """
    dims, limits, needed = problem.dims, gpu.architecture, predict(problem, tiling)
    b, d = tiling.b_per_program, tiling.d_per_program
    blocks = max(1, resources.occupancy(
        limits, needed.threads, needed.registers, needed.shared_bytes
    ))  # fmt: skip
    programs = -(-dims.B // b) * dims.N * (1 if problem.products else -(-dims.D // d))
    resident = min(blocks, -(-programs // gpu.sms))
    flops = 2 * b * problem.products * d * d
    rate = gpu.tensor_flops_per_cycle if problem.tensor_cores else 2 * limits.fp32_fma_per_cycle
    numbers = b * d * pointwise_cost(problem.roots) * INSTRUCTIONS
    fetched = (problem.products - tiling.gates_in_registers) * d * d * problem.dtype.bytes
    if not problem.tensor_cores:  # a thread reads all its rows and columns
        fetched *= b // 4
    parts = (
        flops / rate, numbers / limits.fp32_fma_per_cycle, fetched / limits.shared_bytes_per_cycle
    )  # fmt: skip
    # of one program alone one part follows another, and a warp issues every other cycle at best
    alone = numbers / min(limits.fp32_fma_per_cycle, WARP * tiling.num_warps / 2)
    alone += parts[0] + parts[2] + _waiting(problem) + NUMBER_CYCLES * b * d * problem.products
    step = max(resident * max(parts), alone)
    waves = -(-programs // (resident * gpu.sms))
    return waves * dims.T * step / (gpu.clock_mhz * 1e6)


def _waiting(problem: TritonProblem) -> float:
    """Cycles of a step in which a program waits for products and memory."""
    program = problem.program
    waits = STEP_CYCLES + GATE_CYCLES * problem.products
    if problem.direction != BACKWARD:  # Wx is fetched ahead
        return waits
    read = len(program.saved) + program.states_read + len(program.cell.states)
    return waits + LOAD_CYCLES * read


def alternating_cost(problem: TritonProblem, tiling: AlternatingTiling, gpu: Gpu) -> float:
    """Estimated seconds of one call: two launches per step, and the traffic of one step."""
    dims, item = problem.dims, problem.dtype.bytes
    units = -(-dims.D // tiling.d_per_program) * tiling.d_per_program
    rows = -(-dims.B // tiling.b_per_program) * tiling.b_per_program
    values = len(problem.roots) + 2 * len(problem.program.cell.gates)
    moved = dims.N * (rows * units * values + problem.products * dims.D**2) * item
    return dims.T * (2 * LAUNCH_SECONDS + moved / gpu.memory_bytes_per_second)


@lru_cache(maxsize=1024)
def choose(problem: TritonProblem, gpu: Gpu) -> Chosen:
    """The cheapest fused tiling; where none fits, the alternating schedule, and the limit."""
    try:
        return Chosen(cheapest(problem, gpu, FUSED))
    except Infeasible as error:
        limits = [rule.name or str(rule) for rule in error.conflict]
        reason = f"no fused tiling fits sm_{gpu.sm}: {', '.join(limits)}"
        return Chosen(cheapest(problem, gpu, ALTERNATING), reason)


def tilings(problem: TritonProblem, gpu: Gpu, schedule: str) -> list[Tiling]:
    """Every tiling of a schedule that fits. Raises Infeasible, with the limits, where none does."""
    solved = model(problem, gpu, schedule)
    solved.solve()
    return [tiling_of(solution) for solution in solved.solutions()]


def cheapest(problem: TritonProblem, gpu: Gpu, schedule: str) -> Tiling:
    """The cheapest tiling of a schedule by cost. Raises Infeasible where there is none."""
    return cheapest_of(problem, gpu, tilings(problem, gpu, schedule))


def cheapest_of(problem: TritonProblem, gpu: Gpu, among: Sequence[Tiling]) -> Tiling:
    """The cheapest by cost of some tilings, at least one."""
    return min(among, key=lambda t: (cost(problem, t, gpu), sorted(t.as_config().items())))


def cost(problem: TritonProblem, tiling: Tiling, gpu: Gpu) -> float:
    """Estimated seconds of one call."""
    if isinstance(tiling, FusedTiling):
        return fused_cost(problem, tiling, gpu)
    return alternating_cost(problem, tiling, gpu)
