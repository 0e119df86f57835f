#include "isa.h"

#if defined(FD_X86)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace fastdistill {

extern const KernelTable baseline_table;
#if defined(FD_X86)
extern const KernelTable avx2_table;
extern const KernelTable avx512_table;
#endif

namespace {

/// The tables that this machine and its operating system can run.
std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables{&baseline_table};
#if defined(FD_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) tables.push_back(&avx2_table);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    tables.push_back(&avx512_table);
  }
#endif
  return tables;
}

const KernelTable* find_table(const std::string& name) {
  std::string known;
  for (const KernelTable* table : available_tables()) {
    if (name == table->name) return table;
    known += (known.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("instruction set must be one that this machine has (" + known +
                              "), got '" + name + "'");
}

const KernelTable*& selected() {
  static const KernelTable* table = [] {
    const char* forced = std::getenv("FASTDISTILL_ISA");
    return forced != nullptr && *forced != '\0' ? find_table(forced) : available_tables().back();
  }();
  return table;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_tables()) names.emplace_back(table->name);
  return names;
}

std::string current_isa() { return selected()->name; }

void select_isa(const std::string& name) { selected() = find_table(name); }

const KernelTable& kernel_table() { return *selected(); }

bool has_fast_bfloat16_gemms() {
#if defined(FD_X86)
  constexpr unsigned kAmxBf16 = 1u << 22;  // of edx, leaf 7
  unsigned a, b, c, d;
  const bool amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) != 0;
  return amx || (__builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel"));
#elif defined(__aarch64__)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
#else
  return false;
#endif
}

}  // namespace fastdistill
