// Runs the kernels of one cell outside of Python: the layer around its recurrence, forward and
// backward, on one thread. The emitted kernels stand before this text, each in a
// namespace; what surrounds the recurrence is another library. Numbers come from a file and go to a file, all in double.
#include <fstream>
#include <limits>

extern "C" {
int64_t flashrnn_forward_workspace(const LayerForwardArguments<forward_kernel::Real>*);
void flashrnn_forward(const LayerForwardArguments<forward_kernel::Real>*);
int64_t flashrnn_backward_workspace(const LayerBackwardArguments<forward_kernel::Real>*);
void flashrnn_backward(const LayerBackwardArguments<forward_kernel::Real>*);
}

namespace {

using Cell = forward_kernel::Cell;
using Real = forward_kernel::Real;
constexpr int64_t G = Cell::gates, Gw = Cell::inputs, Gr = Cell::recurrent, S = Cell::states,
                  K = Cell::weights;

// Every buffer has exactly the numbers that it needs, and begins as NaN.
struct Numbers : std::vector<Real> {
  explicit Numbers(int64_t count)
      : std::vector<Real>(count, std::numeric_limits<Real>::quiet_NaN()) {}
};

Numbers read(std::ifstream& file, int64_t count) {
  std::vector<double> values(count);
  file.read(reinterpret_cast<char*>(values.data()), count * sizeof(double));
  Numbers numbers(count);
  for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<Real>(values[i]);
  return numbers;
}

void write(std::ofstream& file, const Numbers& numbers) {
  for (const double x : numbers) file.write(reinterpret_cast<const char*>(&x), sizeof(double));
}

void run_forward(const ForwardArguments<Real>* a) { forward_kernel::forward_run(a); }
void run_backward(const BackwardArguments<Real>* a) { backward_kernel::backward_run(a); }

}  // namespace

FLASHRNN_EXPORT void drive(const char* from, const char* to) {
  std::ifstream in(from, std::ios::binary);
  int64_t sizes[9];
  in.read(reinterpret_cast<char*>(sizes), sizeof(sizes));
  const auto [B, T, N, D, I, steps, rows, reverse, some] = sizes;
  std::vector<int64_t> lengths(B);
  in.read(reinterpret_cast<char*>(lengths.data()), B * sizeof(int64_t));
  const Order order{some ? lengths.data() : nullptr, T, 0, reverse};
  const int64_t row = N * D, step = B * row;

  const Numbers x = read(in, B * T * I), w = read(in, Gw * row * I), r = read(in, Gr * row * D);
  const Numbers bias = read(in, G * row), weights = read(in, K * row), initial = read(in, S * step);
  const Numbers d_states = read(in, S * T * step), d_last = read(in, S * step);

  constexpr int64_t W = forward_kernel::S::lanes;
  Numbers saved(T * B * N * ((D + W - 1) / W) * Cell::saved * W), scratch(0);
  Numbers states(S * T * step), last(S * step);
  ForwardArguments<Real> forward{};
  forward.r = r.data(), forward.bias = bias.data(), forward.weights = weights.data();
  forward.initial = initial.data(), forward.saved = saved.data();
  forward.states_s = T * step, forward.states_b = T * row, forward.states_t = row;
  forward.states_n = D, forward.states_kept = S;
  forward.B = B, forward.T = T, forward.N = N, forward.D = D;
  forward.b_per_core = rows, forward.cores_d = 1, forward.threads = 1, forward.order = order;

  forward.states = states.data(), forward.last = last.data();
  Numbers forward_scratch(forward_kernel::forward_workspace(&forward));
  forward.workspace = forward_scratch.data();
  LayerForwardArguments<Real> around{forward, run_forward, x.data(), T * I, I,      I,
                                     w.data(), Gw * row,   steps,    nullptr};
  Numbers around_scratch(flashrnn_forward_workspace(&around));
  around.workspace = around_scratch.data();
  flashrnn_forward(&around);

  Numbers d_x(B * T * I), d_w(Gw * row * I), d_r(Gr * row * D), d_bias(G * row);
  Numbers d_weights(K * row), d_initial(S * step);
  BackwardArguments<Real> backward{};
  backward.r = r.data(), backward.weights = weights.data(), backward.initial = initial.data();
  backward.states = states.data(), backward.saved = saved.data();
  backward.states_s = T * step, backward.states_b = T * row, backward.states_t = row;
  backward.states_n = D;
  backward.d_states = d_states.data(), backward.d_states_kept = S;
  backward.d_states_s = T * step, backward.d_states_b = T * row, backward.d_states_t = row;
  backward.d_states_n = D;
  backward.d_last = d_last.data(), backward.d_initial = d_initial.data();
  backward.d_weights = d_weights.data();
  backward.B = B, backward.T = T, backward.N = N, backward.D = D;
  backward.b_per_core = rows, backward.cores_d = 1, backward.threads = 1, backward.order = order;
  backward.clip = std::numeric_limits<double>::infinity();
  Numbers backward_scratch(backward_kernel::backward_workspace(&backward));
  backward.workspace = backward_scratch.data();
  std::vector<Run> input, recurrent;
  for (int64_t slot = 0; slot < Gw; ++slot) input.push_back({Cell::input_gate[slot], slot, 1});
  for (int64_t slot = 0; slot < Gr; ++slot)
    recurrent.push_back({Cell::recurrent_gate[slot], slot, 1});
  LayerBackwardArguments<Real> behind{
      backward,    run_backward,  x.data(),         T * I,        I,
      I,           w.data(),      d_x.data(),       T * I,        I,
      d_w.data(),  Gr > 0 ? d_r.data() : nullptr,   d_bias.data(), d_weights.data(),
      G,           S,             K,                steps,        input.data(),
      Gw,          recurrent.data(), Gr,            nullptr};
  Numbers behind_scratch(flashrnn_backward_workspace(&behind));
  behind.workspace = behind_scratch.data();
  flashrnn_backward(&behind);

  std::ofstream out(to, std::ios::binary);
  for (const Numbers* result : {&states, &last, &d_x, &d_w, &d_r, &d_bias, &d_weights,
                                &d_initial})
    write(out, *result);
}
