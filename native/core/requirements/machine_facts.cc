#include "core/requirements/machine_facts.h"

#include <cpuid.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <sstream>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/requirements/content_hash.h"

namespace replpage {
namespace {

struct Feature {
  uint32_t leaf, subleaf, output, bit;
  const char* name;
};
constexpr uint32_t kEax = 0, kEbx = 1, kEcx = 2, kEdx = 3;
constexpr uint32_t kExtended = 0x80000001, kExtended8 = 0x80000008;
constexpr uint32_t kXstateLeaf = 0xD;
constexpr uint32_t kXstateComponents = 63;

// What programs may use without asking the kernel (Intel SDM 2A, CPUID; AMD APM 3, appendix E).
// Bits that tell of the machine rather than of instructions are left out.
constexpr auto kCpuFeatures = std::to_array<Feature>({
    {1, 0, kEcx, 0, "pni"},
    {1, 0, kEcx, 1, "pclmulqdq"},
    {1, 0, kEcx, 9, "ssse3"},
    {1, 0, kEcx, 12, "fma"},
    {1, 0, kEcx, 13, "cx16"},
    {1, 0, kEcx, 19, "sse4_1"},
    {1, 0, kEcx, 20, "sse4_2"},
    {1, 0, kEcx, 22, "movbe"},
    {1, 0, kEcx, 23, "popcnt"},
    {1, 0, kEcx, 25, "aes"},
    {1, 0, kEcx, 26, "xsave"},
    {1, 0, kEcx, 27, "osxsave"},
    {1, 0, kEcx, 28, "avx"},
    {1, 0, kEcx, 29, "f16c"},
    {1, 0, kEcx, 30, "rdrand"},
    {1, 0, kEdx, 4, "tsc"},
    {1, 0, kEdx, 8, "cx8"},
    {1, 0, kEdx, 15, "cmov"},
    {1, 0, kEdx, 19, "clflush"},
    {1, 0, kEdx, 23, "mmx"},
    {1, 0, kEdx, 24, "fxsr"},
    {1, 0, kEdx, 25, "sse"},
    {1, 0, kEdx, 26, "sse2"},
    {7, 0, kEbx, 0, "fsgsbase"},
    {7, 0, kEbx, 3, "bmi1"},
    {7, 0, kEbx, 4, "hle"},
    {7, 0, kEbx, 5, "avx2"},
    {7, 0, kEbx, 8, "bmi2"},
    {7, 0, kEbx, 11, "rtm"},
    {7, 0, kEbx, 16, "avx512f"},
    {7, 0, kEbx, 17, "avx512dq"},
    {7, 0, kEbx, 18, "rdseed"},
    {7, 0, kEbx, 19, "adx"},
    {7, 0, kEbx, 21, "avx512ifma"},
    {7, 0, kEbx, 23, "clflushopt"},
    {7, 0, kEbx, 24, "clwb"},
    {7, 0, kEbx, 28, "avx512cd"},
    {7, 0, kEbx, 29, "sha_ni"},
    {7, 0, kEbx, 30, "avx512bw"},
    {7, 0, kEbx, 31, "avx512vl"},
    {7, 0, kEcx, 1, "avx512vbmi"},
    {7, 0, kEcx, 4, "ospke"},
    {7, 0, kEcx, 5, "waitpkg"},
    {7, 0, kEcx, 6, "avx512_vbmi2"},
    {7, 0, kEcx, 8, "gfni"},
    {7, 0, kEcx, 9, "vaes"},
    {7, 0, kEcx, 10, "vpclmulqdq"},
    {7, 0, kEcx, 11, "avx512_vnni"},
    {7, 0, kEcx, 12, "avx512_bitalg"},
    {7, 0, kEcx, 14, "avx512_vpopcntdq"},
    {7, 0, kEcx, 22, "rdpid"},
    {7, 0, kEcx, 27, "movdiri"},
    {7, 0, kEcx, 28, "movdir64b"},
    {7, 0, kEdx, 8, "avx512_vp2intersect"},
    {7, 0, kEdx, 14, "serialize"},
    {7, 0, kEdx, 22, "amx_bf16"},
    {7, 0, kEdx, 23, "avx512_fp16"},
    {7, 0, kEdx, 24, "amx_tile"},
    {7, 0, kEdx, 25, "amx_int8"},
    {7, 1, kEax, 4, "avx_vnni"},
    {7, 1, kEax, 5, "avx512_bf16"},
    {kXstateLeaf, 1, kEax, 0, "xsaveopt"},
    {kXstateLeaf, 1, kEax, 1, "xsavec"},
    {kXstateLeaf, 1, kEax, 2, "xgetbv1"},
    {kExtended, 0, kEcx, 0, "lahf_lm"},
    {kExtended, 0, kEcx, 5, "abm"},
    {kExtended, 0, kEcx, 6, "sse4a"},
    {kExtended, 0, kEcx, 7, "misalignsse"},
    {kExtended, 0, kEcx, 8, "3dnowprefetch"},
    {kExtended, 0, kEcx, 11, "xop"},
    {kExtended, 0, kEcx, 16, "fma4"},
    {kExtended, 0, kEcx, 21, "tbm"},
    {kExtended, 0, kEdx, 11, "syscall"},
    {kExtended, 0, kEdx, 27, "rdtscp"},
    {kExtended, 0, kEdx, 29, "lm"},
    {kExtended8, 0, kEbx, 0, "clzero"},
});
// Of AT_HWCAP2 (arch/x86/include/uapi/asm/hwcap2.h).
constexpr auto kCapabilityNames = std::to_array<const char*>({"ring3mwait", "fsgsbase"});

std::array<uint32_t, 4> cpuid(uint32_t leaf, uint32_t subleaf) {
  std::array<uint32_t, 4> words{};
  // False, and all zero, where the processor has no such leaf.
  __get_cpuid_count(leaf, subleaf, &words[0], &words[1], &words[2], &words[3]);
  return words;
}

bool is_in(const CpuidWord& word, const Feature& feature) {
  return word.leaf == feature.leaf && word.subleaf == feature.subleaf &&
         word.output == feature.output;
}

std::vector<CpuidWord> read_cpu() {
  std::vector<CpuidWord> words;
  for (const Feature& feature : kCpuFeatures) {
    if (words.empty() || !is_in(words.back(), feature)) {
      words.push_back({feature.leaf, feature.subleaf, feature.output, 0});
    }
    const uint32_t value = cpuid(feature.leaf, feature.subleaf).at(feature.output);
    words.back().bits |= value & (1u << feature.bit);
  }
  return words;
}

void read_xstate(MachineFacts& facts) {
  const auto whole = cpuid(kXstateLeaf, 0);
  facts.xstate_bytes = whole[kEbx];  // of what is switched on in XCR0
  const uint64_t supported = whole[kEax] | uint64_t{whole[kEdx]} << 32;
  for (uint32_t number = 2; number < kXstateComponents; ++number) {
    if ((supported >> number & 1) == 0) continue;
    const auto words = cpuid(kXstateLeaf, number);
    // One that is not switched on lies behind the area's end.
    if (words[kEbx] + words[kEax] > facts.xstate_bytes) continue;
    facts.xstate.push_back({number, words[kEbx], words[kEax]});
  }
}

// Every process has the same one mapped.
void read_vdso(MachineFacts& facts) {
  const uint64_t base = ::getauxval(AT_SYSINFO_EHDR);
  const auto maps = read_proc("/proc/self/maps");
  if (!maps) throw SysError("read", ENOENT, on_path("/proc/self/maps"));
  std::istringstream lines(*maps);
  for (std::string line; std::getline(lines, line);) {
    uint64_t start = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &start, &end) != 2) continue;
    if (line.ends_with("[vvar]") || line.ends_with("[vvar_vclock]")) {
      facts.vvar_bytes += static_cast<uint32_t>(end - start);
    }
    if (!line.ends_with("[vdso]") || start != base) continue;
    facts.vdso_bytes = static_cast<uint32_t>(end - start);
    facts.vdso_sha256 =
        sha256_of({reinterpret_cast<const uint8_t*>(start), end - start});  // NOLINT
  }
}

uint64_t read_limit(const char* path) {
  const auto text = read_proc(path);
  return text ? std::strtoull(text->c_str(), nullptr, 10) : 0;
}

uint32_t bits_of(const std::vector<CpuidWord>& words, const Feature& feature) {
  for (const CpuidWord& word : words) {
    if (is_in(word, feature)) return word.bits;
  }
  return 0;
}

}  // namespace

MachineFacts read_machine_facts() {
  utsname name{};
  if (::uname(&name) != 0) throw SysError::from_errno("uname");
  MachineFacts facts;
  facts.system = name.sysname;
  facts.release = name.release;
  facts.architecture = name.machine;
  facts.page_bytes = static_cast<uint32_t>(::sysconf(_SC_PAGESIZE));
  facts.cpu = read_cpu();
  facts.hardware_capabilities = ::getauxval(AT_HWCAP2);
  read_xstate(facts);
  read_vdso(facts);
  facts.pid_max = read_limit("/proc/sys/kernel/pid_max");
  facts.mappings_max = read_limit("/proc/sys/vm/max_map_count");
  facts.descriptors_max = read_limit("/proc/sys/fs/nr_open");
  if (const auto scope = read_proc("/proc/sys/kernel/yama/ptrace_scope")) {
    facts.ptrace_scope = static_cast<int32_t>(std::strtol(scope->c_str(), nullptr, 10));
  }
  return facts;
}

std::vector<std::string> lacking_features(const MachineFacts& used, const MachineFacts& here) {
  std::vector<std::string> names;
  for (const Feature& feature : kCpuFeatures) {
    const uint32_t bit = 1u << feature.bit;
    if ((bits_of(used.cpu, feature) & bit) == 0) continue;
    if ((bits_of(here.cpu, feature) & bit) == 0) names.emplace_back(feature.name);
  }
  const uint64_t lacking = used.hardware_capabilities & ~here.hardware_capabilities;
  for (size_t bit = 0; bit < kCapabilityNames.size(); ++bit) {
    if ((lacking >> bit & 1) != 0)
      names.push_back(std::string("hwcap2:") + kCapabilityNames.at(bit));
  }
  return names;
}

}  // namespace replpage
