#include "core/requirements/requirement_check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"
#include "core/requirements/file_facts.h"

namespace replpage {
namespace {

constexpr std::string_view kDeleted = " (deleted)";
constexpr int32_t kNoTracing = 3;  // kernel.yama.ptrace_scope
constexpr const char* kAnotherNode = "name another node with --to";

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

class Check {
 public:
  Check(const Requirements& wanted, const MachineFacts& here, const CheckRules& rules,
        HashCache& cache)
      : wanted_(wanted), here_(here), rules_(rules), cache_(cache) {}

  std::vector<Unmet> run() {
    check_machine();
    check_processor();
    check_xstate();
    check_vdso();
    check_limits();
    for (const std::string& name : wanted_.bound) {
      miss(UnmetKind::kBound, name, "kernel object",
           "it exists on the primary's node only and cannot be rebuilt on another",
           "keep the replica on that node (--to self)");
    }
    for (size_t i = 0; i < wanted_.files.size(); ++i) {
      check_file(wanted_.files[i], static_cast<int32_t>(i));
    }
    return std::move(unmet_);
  }

 private:
  void miss(UnmetKind kind, std::string what, std::string where, std::string why,
            std::string remedy, int32_t file = -1) {
    unmet_.push_back(
        {kind, std::move(what), std::move(where), std::move(why), std::move(remedy), file});
  }

  void check_machine() {
    const MachineFacts& theirs = wanted_.machine;
    if (theirs.system != here_.system || theirs.architecture != here_.architecture) {
      miss(UnmetKind::kMachine, here_.system + " " + here_.architecture, "machine",
           "the group runs on " + theirs.system + " " + theirs.architecture, kAnotherNode);
    }
    if (theirs.page_bytes != here_.page_bytes) {
      miss(UnmetKind::kMachine, std::to_string(here_.page_bytes) + "-byte pages", "kernel",
           "the group's pages have " + std::to_string(theirs.page_bytes) + " bytes", kAnotherNode);
    }
  }

  // A program asks the processor what it has when it starts, and never again.
  void check_processor() {
    const std::vector<std::string> lacking = lacking_features(wanted_.machine, here_);
    if (lacking.empty()) return;
    miss(
        UnmetKind::kProcessor, joined(lacking), "processor",
        "the primary's processor has these instructions, which its programs may be using, and the "
        "one here does not",
        "name a node with --to whose processor is of the same kind or newer, or give the primary's "
        "virtual machine a processor model that both have");
  }

  // Registers are carried over in this layout; what both have must lie at the same place.
  void check_xstate() {
    if (here_.xstate_bytes < wanted_.machine.xstate_bytes) {
      miss(UnmetKind::kXstate, "XSAVE area", "processor",
           "the primary's registers take " + std::to_string(wanted_.machine.xstate_bytes) +
               " bytes, and the area here has " + std::to_string(here_.xstate_bytes),
           kAnotherNode);
      return;
    }
    for (const XstateComponent& theirs : wanted_.machine.xstate) {
      if (std::find(here_.xstate.begin(), here_.xstate.end(), theirs) != here_.xstate.end())
        continue;
      miss(UnmetKind::kXstate, "XSAVE component " + std::to_string(theirs.number), "processor",
           "it is not at the same place here, as between processors of two makers", kAnotherNode);
    }
  }

  // A thread may stand in it, and the C library has found its functions there.
  void check_vdso() {
    const MachineFacts& theirs = wanted_.machine;
    if (!wanted_.uses_vdso) return;
    const bool same = theirs.vdso_sha256 == here_.vdso_sha256 &&
                      theirs.vdso_bytes == here_.vdso_bytes &&
                      theirs.vvar_bytes == here_.vvar_bytes;
    if (same) return;
    miss(UnmetKind::kVdso, "vdso of Linux " + here_.release, "kernel",
         "the group's processes have that of Linux " + theirs.release +
             " mapped, which only that very kernel, on a like processor, has",
         "run the same kernel on both nodes, or start the program with its clock calls outside the "
         "vdso (vdso=0 on the kernel's command line of both)");
  }

  void check_limit(const char* name, uint64_t needed, uint64_t limit) {
    if (limit == 0 || needed <= limit) return;
    miss(UnmetKind::kLimit, std::string(name) + " = " + std::to_string(limit), "kernel settings",
         "the group needs " + std::to_string(needed),
         "sysctl " + std::string(name) + "=" + std::to_string(needed) + " on this node");
  }

  void check_limits() {
    // Pids are below the limit.
    check_limit("kernel.pid_max", wanted_.highest_pid + 1, here_.pid_max);
    // The stub and the mappings of a moment when ranges move.
    constexpr uint64_t kExtraMappings = 64;
    check_limit("vm.max_map_count", wanted_.most_mappings + kExtraMappings, here_.mappings_max);
    check_limit("fs.nr_open", wanted_.highest_descriptor + 1, here_.descriptors_max);
    if (here_.ptrace_scope >= kNoTracing) {
      miss(UnmetKind::kLimit, "kernel.yama.ptrace_scope = 3", "kernel settings",
           "nothing may be traced on this node, and a replica is kept by a tracer",
           "restart this node with kernel.yama.ptrace_scope at 2 or less");
    }
  }

  void check_file(const FileRequirement& file, int32_t position) {
    struct stat status {};
    const bool code = file.use == FileUse::kExecutable || file.use == FileUse::kMapped;
    if (file.path.ends_with(kDeleted)) return check_deleted(file);
    if (::stat(file.path.c_str(), &status) != 0) {
      const std::string why = std::string("it cannot be had here: ") + std::strerror(errno);
      if (code) return miss_code(UnmetKind::kFileMissing, file, why, position);
      return miss(UnmetKind::kDataFile, file.path, use_of(file), why, remedy_of_data(file));
    }
    FileRequirement here;
    fill_file_facts(status, file.path, here);
    if (here.type != file.type) {
      return miss(UnmetKind::kDataFile, file.path, use_of(file), "it is of another kind here",
                  remedy_of_data(file));
    }
    if (S_ISCHR(file.type) || S_ISBLK(file.type)) return check_device(file, here);
    if (!S_ISREG(file.type)) return;
    if (here.device == file.device && here.inode == file.inode && here.size == file.size &&
        here.modified_ns == file.modified_ns) {
      return;  // the same machine, or one file system on both
    }
    if (code) return check_code(file, here, position);
    check_data(file, here);
  }

  // Deleted data is carried along in the image, and a mapping of it is not.
  void check_deleted(const FileRequirement& file) {
    if (file.use == FileUse::kOpen) return;
    miss(UnmetKind::kFileMissing, file.path, use_of(file),
         "no path leads to it, so no other node could have it",
         "start the program anew, so that it uses the file that is there now");
  }

  void miss_code(UnmetKind kind, const FileRequirement& file, std::string why, int32_t position) {
    miss(kind, file.path, use_of(file), std::move(why),
         "install the same package on this node, or let it be shipped (--ship-files)", position);
  }

  void check_code(const FileRequirement& file, const FileRequirement& here, int32_t position) {
    const UniqueFd fd(::open(file.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd.valid()) {
      return miss_code(UnmetKind::kFileMissing, file,
                       std::string("it cannot be opened here: ") + std::strerror(errno), position);
    }
    if (!file.build_id.empty()) {
      // Tools that change a program in place keep its build id, and as a rule change its length.
      if (here.size == file.size && cache_.build_id(fd.get()) == file.build_id) return;
      return miss_code(UnmetKind::kFileDiffers, file, "it has another build id or size here",
                       position);
    }
    if (file.sha256.empty()) {
      if (file.on_network && here.on_network && here.inode == file.inode) return;
      return miss(UnmetKind::kFileDiffers, file.path, use_of(file),
                  "it is too large to be compared (" + std::to_string(file.size >> 30) + " GiB)",
                  "keep it on storage that both nodes mount at this path");
    }
    const bool same = here.size == file.size && cache_.sha256(fd.get()) == file.sha256;
    if (!same) miss_code(UnmetKind::kFileDiffers, file, "it has another content here", position);
  }

  void check_device(const FileRequirement& file, const FileRequirement& here) {
    if (here.special == file.special) return;
    miss(UnmetKind::kDevice, file.path, use_of(file),
         "it is device " + number_of(here) + " here, and " + number_of(file) + " there",
         "make the device node the same on both nodes");
  }

  static std::string number_of(const FileRequirement& file) {
    return std::to_string(gnu_dev_major(file.special)) + ":" +
           std::to_string(gnu_dev_minor(file.special));
  }

  // Where machines share the file system the file has one number on all of them.
  void check_data(const FileRequirement& file, const FileRequirement& here) {
    if (rules_.keep_files) return;
    if (file.on_network && here.on_network && file.inode == here.inode) return;
    if (file.written) {
      return miss(UnmetKind::kDataFile, file.path, use_of(file),
                  "it is another file here, and what the primary writes does not reach it",
                  remedy_of_data(file));
    }
    if (here.size != file.size) {
      return miss(UnmetKind::kDataFile, file.path, use_of(file), "it has another size here",
                  remedy_of_data(file));
    }
    if (same_content(file, here)) return;
    miss(UnmetKind::kDataFile, file.path, use_of(file), "it has another content here",
         remedy_of_data(file));
  }

  bool same_content(const FileRequirement& file, const FileRequirement& here) {
    if (file.sha256.empty()) return here.modified_ns == file.modified_ns;  // too large to compare
    const UniqueFd fd(::open(file.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    return fd.valid() && cache_.sha256(fd.get()) == file.sha256;
  }

  static std::string use_of(const FileRequirement& file) {
    switch (file.use) {
      case FileUse::kExecutable:
        return "executable";
      case FileUse::kMapped:
        return "mapped";
      case FileUse::kMappedShared:
        return "mapped shared";
      case FileUse::kDirectory:
        return "directory of a process";
      case FileUse::kOpen:
        break;
    }
    return file.written ? "open for writing" : "open";
  }

  static std::string remedy_of_data(const FileRequirement& file) {
    if (file.use == FileUse::kDirectory) return "make the directory on this node";
    return "keep it on storage that both nodes mount at this path, or protect with --files keep "
           "where the program tolerates another file";
  }

  const Requirements& wanted_;
  const MachineFacts& here_;
  const CheckRules& rules_;
  HashCache& cache_;
  std::vector<Unmet> unmet_;
};

}  // namespace

std::vector<Unmet> check_requirements(const Requirements& wanted, const MachineFacts& here,
                                      const CheckRules& rules, HashCache& cache) {
  return Check(wanted, here, rules, cache).run();
}

}  // namespace replpage
