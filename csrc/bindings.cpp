// The Python module `fastdistill._C`. Pointers arrive as integers; every check that stands between
// Python and a kernel's memory accesses is here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

#include "cpu/isa.h"
#include "cuda/backend.h"
#include "dispatch.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

/// Everything but what only the data can tell: the ids and the labels.
void check(const RowProblem& p, int divergence, const std::vector<double>& parameters) {
  require(0 <= divergence && divergence < static_cast<int>(divergences().size()),
          "divergence index out of range");
  require(static_cast<int>(parameters.size()) ==
              divergences()[static_cast<size_t>(divergence)].parameters,
          "wrong number of divergence parameters");
  require(p.rows >= 0 && p.vocab >= 1, "rows must be >= 0 and vocab >= 1");
  require(p.temperature > 0.0, "temperature must be > 0");
  if (p.rows == 0) return;
  require(p.student.data != nullptr, "student logits: null pointer");
  if (p.top_k.k == 0) {
    require(p.teacher.data != nullptr, "teacher logits: null pointer");
  } else {
    require(p.top_k.ids != nullptr && p.top_k.log_p != nullptr, "top-k: null pointer");
    require(p.top_k.tail_log_prob != nullptr || p.top_k.tail == Tail::kRenormalize ||
                p.top_k.tail == Tail::kZero,
            "top-k: this tail needs tail_log_prob");
  }
  if (p.mode != Mode::kBackward) {
    require(p.soft != nullptr && (p.labels == nullptr || p.hard != nullptr),
            "values: null pointer");
  }
  require(p.mode != Mode::kBackward || p.stats != nullptr, "stats: null pointer");
  if (p.mode != Mode::kForward) {
    require(p.gradient.data != nullptr, "gradient: null pointer");
    require(p.gradient.dtype == p.student.dtype && p.gradient_width >= p.vocab &&
                (p.rows == 1 || p.gradient.row_stride >= p.gradient_width),
            "gradient must have the student's dtype, at least vocab columns and rows of its own");
    require(p.grad_soft != nullptr && (p.labels == nullptr || p.grad_hard != nullptr),
            "upstream gradients: null pointer");
  }
}

void check_data(const RowProblem& p) {
  require(p.top_k.k == 0 || !find_bad_id(p.top_k, p.counted, p.rows, p.vocab).found(),
          "top-k: id out of range or repeated");
  for (int64_t row = 0; p.labels != nullptr && row < p.rows; ++row) {
    const bool counted = p.counted == nullptr || p.counted[row];
    require(!counted || (0 <= p.labels[row] && p.labels[row] < p.vocab), "label out of range");
  }
}

void bind_structs(py::module_& m) {
  py::enum_<DType>(m, "DType")
      .value("float32", DType::kFloat32)
      .value("bfloat16", DType::kBFloat16)
      .value("float16", DType::kFloat16)
      .value("float64", DType::kFloat64);
  py::enum_<Tail>(m, "Tail")
      .value("bucket", Tail::kBucket)
      .value("renormalize", Tail::kRenormalize)
      .value("zero", Tail::kZero)
      .value("uniform", Tail::kUniform);
  py::enum_<Mode>(m, "Mode")
      .value("forward", Mode::kForward)
      .value("backward", Mode::kBackward)
      .value("fused", Mode::kFused);
  py::class_<Logits>(m, "Logits")
      .def(py::init(
               [](uintptr_t data, int64_t row_stride, DType dtype, double scale, double softcap) {
                 return Logits{pointer<void>(data), row_stride, dtype, scale, softcap};
               }),
           py::arg("data"), py::arg("row_stride"), py::arg("dtype"), py::arg("scale") = 1.0,
           py::arg("softcap") = 0.0);
  py::class_<TopK>(m, "TopK")
      .def(py::init([](uintptr_t ids, int64_t ids_stride, uintptr_t log_p, int64_t log_p_stride,
                       int64_t k, Tail tail, bool sums_to_one, uintptr_t tail_log_prob) {
             return TopK{pointer<const int64_t>(ids),
                         pointer<const void>(log_p),
                         ids_stride,
                         log_p_stride,
                         k,
                         tail,
                         sums_to_one,
                         pointer<const double>(tail_log_prob)};
           }),
           py::arg("ids"), py::arg("ids_stride"), py::arg("log_p"), py::arg("log_p_stride"),
           py::arg("k"), py::arg("tail"), py::arg("sums_to_one"), py::arg("tail_log_prob") = 0);
}

void run_problem(Mode mode, int divergence, const std::vector<double>& parameters, int64_t rows,
                 int64_t vocab, double temperature, const Logits& student, const Logits* teacher,
                 const TopK* top_k, uintptr_t labels, uintptr_t counted, uintptr_t soft,
                 uintptr_t hard, uintptr_t stats, uintptr_t metrics, uintptr_t grad_soft,
                 uintptr_t grad_hard, const Logits* gradient, int64_t gradient_width, int threads,
                 std::optional<uintptr_t> stream) {
  RowProblem p;
  p.mode = mode;
  p.rows = rows;
  p.vocab = vocab;
  p.temperature = temperature;
  p.student = student;
  if (teacher != nullptr) p.teacher = *teacher;
  if (top_k != nullptr) p.top_k = *top_k;
  p.labels = pointer<const int64_t>(labels);
  p.counted = pointer<const bool>(counted);
  p.soft = pointer<double>(soft);
  p.hard = pointer<double>(hard);
  p.stats = pointer<RowStats>(stats);
  p.metrics = pointer<RowMetrics>(metrics);
  p.grad_soft = pointer<const double>(grad_soft);
  p.grad_hard = pointer<const double>(grad_hard);
  if (gradient != nullptr) p.gradient = *gradient;
  p.gradient_width = gradient_width;
  p.parameters = parameters.data();
  require(threads >= 1, "threads must be >= 1");
  check(p, divergence, parameters);
  if (!stream.has_value()) check_data(p);
  const py::gil_scoped_release release;
  if (stream.has_value()) {
    run_on_cuda(p, divergence, pointer<void>(*stream));
  } else {
    run(p, divergence, threads);
  }
}

py::object bad_id(const TopK& top_k, uintptr_t counted, int64_t rows, int64_t vocab) {
  const BadId bad = find_bad_id(top_k, pointer<const bool>(counted), rows, vocab);
  if (!bad.found()) return py::none();
  return py::make_tuple(bad.row, bad.slot, bad.id);
}

std::vector<std::pair<std::string, int>> list_divergences() {
  std::vector<std::pair<std::string, int>> list;
  for (const DivergenceInfo& info : divergences()) list.emplace_back(info.name, info.parameters);
  return list;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Row kernels of fastdistill.";
  bind_structs(m);
  m.def(
      "run", &run_problem, py::kw_only(), py::arg("mode"), py::arg("divergence"),
      py::arg("parameters"), py::arg("rows"), py::arg("vocab"), py::arg("temperature"),
      py::arg("student"), py::arg("teacher") = py::none(), py::arg("top_k") = py::none(),
      py::arg("labels") = 0, py::arg("counted") = 0, py::arg("soft") = 0, py::arg("hard") = 0,
      py::arg("stats") = 0, py::arg("metrics") = 0, py::arg("grad_soft") = 0,
      py::arg("grad_hard") = 0, py::arg("gradient") = py::none(), py::arg("gradient_width") = 0,
      py::arg("threads") = 1, py::arg("stream") = py::none(),
      "Runs the rows of one problem; addresses are integers, 0 for absent. With a stream they are\n"
      "on the current CUDA device, ids and labels are not checked, and the call does not wait.");
  m.def("bad_id", &bad_id, py::arg("top_k"), py::arg("counted"), py::arg("rows"), py::arg("vocab"),
        "(row, slot, id) of the first id out of range or repeated in a row that counts, or None.");
  m.def("advise_huge_pages",
        [](uintptr_t data, int64_t bytes) { advise_huge_pages(pointer<void>(data), bytes); });
  m.def("divergences", &list_divergences, "(name, number of parameters) in kernel order.");
  m.def("available_isas", &available_isas);
  m.def("current_isa", &current_isa);
  m.def("select_isa", &select_isa, py::arg("name"));
  m.def("has_fast_bfloat16_gemms", &has_fast_bfloat16_gemms);
  py::enum_<Elementary>(m, "Elementary")
      .value("exp", Elementary::kExp)
      .value("log", Elementary::kLog)
      .value("tanh", Elementary::kTanh);
  m.def(
      "evaluate",
      [](Elementary function, uintptr_t in, uintptr_t out, int64_t n) {
        kernel_table().evaluate(function, pointer<const float>(in), pointer<float>(out), n);
      },
      "The function of n floats. `out` has room for 16 more: the last vector is written whole.");
  m.attr("ROW_STATS") = kRowStats;
  m.attr("ROW_METRICS") = kRowMetrics;
  m.attr("COMPILER") = FD_COMPILER;
  m.attr("CUDA") = cuda_description();  // empty without a CUDA backend
  m.attr("VERSION") = FD_VERSION;
}

}  // namespace fastdistill
