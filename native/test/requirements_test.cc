#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/base/procfs.h"
#include "core/requirements/content_hash.h"
#include "core/requirements/requirement_check.h"
#include "test/test.h"

namespace replpage {
namespace {

class Folder {
 public:
  Folder() { CHECK(::mkdtemp(path_) != nullptr); }
  ~Folder() {
    for (const std::string& file : files_) ::unlink(file.c_str());
    ::rmdir(path_);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string write(const std::string& name, const std::string& content) {
    std::string path = std::string(path_) + "/" + name;
    ::unlink(path.c_str());  // another file, as a package manager makes one
    const UniqueFd file = open_path(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(::write(file.get(), content.data(), content.size()) ==
          static_cast<ssize_t>(content.size()));
    files_.push_back(path);
    return path;
  }

 private:
  char path_[40] = "/tmp/replpage-requirements-XXXXXX";
  std::vector<std::string> files_;
};

// A child that has `mapped` mapped, `read` open for reading and `written` for writing.
class User {
 public:
  User(const std::string& mapped, const std::string& read, const std::string& written,
       int how = MAP_PRIVATE, int protection = PROT_READ) {
    int ready[2];
    CHECK(::pipe(ready) == 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      // Output of the tests may go to a file, which would be data of this process.
      const int nothing = ::open("/dev/null", O_RDWR);
      for (const int stream : {0, 1, 2}) ::dup2(nothing, stream);
      const int library =
          ::open(mapped.c_str(), (protection & PROT_WRITE) != 0 ? O_RDWR : O_RDONLY);
      void* at = ::mmap(nullptr, 4096, protection, how, library, 0);
      ::close(library);
      const int data = ::open(read.c_str(), O_RDONLY), log = ::open(written.c_str(), O_WRONLY);
      const char done = at != MAP_FAILED && data >= 0 && log >= 0 ? 'y' : 'n';
      (void)!::write(ready[1], &done, 1);
      for (;;) ::pause();
    }
    char done = 'n';
    CHECK(::read(ready[0], &done, 1) == 1 && done == 'y');
    ::close(ready[0]);
    ::close(ready[1]);
  }
  ~User() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  User(const User&) = delete;
  User& operator=(const User&) = delete;
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = 0;
};

Requirements gathered(pid_t pid) {
  if (::geteuid() != 0) SKIP("needs root");
  HashCache cache;
  return gather_requirements({&pid, 1}, cache);
}

std::vector<Unmet> unmet(const Requirements& wanted, const MachineFacts& here,
                         const CheckRules& rules = {}) {
  HashCache cache;
  auto found = check_requirements(wanted, here, rules, cache);
  for (const Unmet& one : found) {
    testing::note(one.what + " (" + one.where + "): " + one.why + "; " + one.remedy);
    CHECK(!one.what.empty() && !one.where.empty() && !one.why.empty() && !one.remedy.empty());
  }
  return found;
}

// The one thing that is unmet.
Unmet only(const std::vector<Unmet>& found, UnmetKind kind) {
  CHECK_EQUAL(found.size(), 1u);
  CHECK(found[0].kind == kind);
  return found[0];
}

FileRequirement& file_of(Requirements& wanted, const std::string& path) {
  for (FileRequirement& file : wanted.files) {
    if (file.path == path) return file;
  }
  testing::fail(__FILE__, __LINE__, path + " is not required");
}

Requirements bare() {
  Requirements wanted;
  wanted.machine = read_machine_facts();
  wanted.uses_vdso = true;
  return wanted;
}

TEST(a_machine_has_what_its_own_processes_need) {
  Folder folder;
  const User user(folder.write("lib", "code"), folder.write("data", "x"), folder.write("log", ""));
  Requirements wanted = gathered(user.pid());
  CHECK(unmet(wanted, read_machine_facts()).empty());
  CHECK(wanted.uses_vdso && wanted.most_mappings > 5 && wanted.highest_descriptor >= 2);
  const std::string self = read_link("/proc/self/exe").value_or("");
  CHECK(file_of(wanted, self).use == FileUse::kExecutable);
  CHECK(!file_of(wanted, self).build_id.empty() || !file_of(wanted, self).sha256.empty());
}

TEST(requirements_survive_their_encoding_and_damage_is_found) {
  Folder folder;
  const User user(folder.write("lib", "code"), folder.write("data", "x"), folder.write("log", ""));
  Requirements wanted = gathered(user.pid());
  Bytes bytes = encode_requirements(wanted);
  Requirements again = decode_requirements(bytes);
  CHECK(encode_requirements(again) == bytes);
  const auto refused = [](const Bytes& damaged) {
    try {
      decode_requirements(damaged);
    } catch (const FormatError&) {
      return true;
    }
    return false;
  };
  for (size_t at = 0; at < bytes.size(); at += 1 + at / 16) {
    Bytes damaged = bytes;
    damaged[at] ^= 0x10;
    CHECK(refused(damaged));
    CHECK(refused({bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(at)}));
  }
  bytes.push_back(0);
  CHECK(refused(bytes));
}

TEST(mapped_files_that_are_missing_or_different_can_be_shipped) {
  Folder folder;
  const std::string library = folder.write("lib", "code");
  const User user(library, folder.write("data", "x"), folder.write("log", ""));
  const Requirements wanted = gathered(user.pid());
  const MachineFacts here = read_machine_facts();
  folder.write("lib", "Code");
  Unmet found = only(unmet(wanted, here), UnmetKind::kFileDiffers);
  CHECK(found.what == library && wanted.files.at(static_cast<size_t>(found.file)).path == library);
  folder.write("lib", "code");
  CHECK(unmet(wanted, here).empty());  // another file of the same content
  ::unlink(library.c_str());
  found = only(unmet(wanted, here), UnmetKind::kFileMissing);
  CHECK(wanted.files.at(static_cast<size_t>(found.file)).path == library);
}

TEST(build_ids_tell_programs_apart) {
  const std::string self = read_link("/proc/self/exe").value_or("");
  const UniqueFd program = open_path(self, O_RDONLY);
  const Bytes id = build_id_of(program.get());
  if (id.empty()) SKIP("this program has no build id");
  Requirements wanted = bare();
  struct stat status {};
  CHECK(::fstat(program.get(), &status) == 0);
  FileRequirement file{.use = FileUse::kExecutable, .path = self, .type = S_IFREG, .build_id = id};
  file.size = static_cast<uint64_t>(status.st_size);
  wanted.files = {file};
  CHECK(unmet(wanted, read_machine_facts()).empty());
  ++wanted.files[0].size;  // changed in place
  only(unmet(wanted, read_machine_facts()), UnmetKind::kFileDiffers);
  --wanted.files[0].size;
  wanted.files[0].build_id[0] ^= 1;
  only(unmet(wanted, read_machine_facts()), UnmetKind::kFileDiffers);
  const UniqueFd nothing = open_path("/dev/null", O_RDONLY);
  CHECK(build_id_of(nothing.get()).empty());
}

TEST(open_data_must_be_the_same_here) {
  Folder folder;
  const std::string data = folder.write("data", "x"), log = folder.write("log", "");
  const User user(folder.write("lib", "code"), data, log);
  const Requirements wanted = gathered(user.pid());
  const MachineFacts here = read_machine_facts();
  folder.write("data", "y");
  CHECK(only(unmet(wanted, here), UnmetKind::kDataFile).what == data);
  CHECK(unmet(wanted, here, {.keep_files = true}).empty());
  folder.write("data", "x");  // only read, and of the same content
  CHECK(unmet(wanted, here).empty());
  folder.write("log", "");  // what the primary writes goes elsewhere
  CHECK(only(unmet(wanted, here), UnmetKind::kDataFile).what == log);
  CHECK(unmet(wanted, here, {.keep_files = true}).empty());
  ::unlink(log.c_str());
  CHECK(only(unmet(wanted, here, {.keep_files = true}), UnmetKind::kDataFile).file < 0);
}

// glibc maps gconv-modules.cache so: each machine has its own.
TEST(a_shared_mapping_that_is_only_read_is_data_that_is_only_read) {
  Folder folder;
  const std::string data = folder.write("data", "x"), log = folder.write("log", "");
  const std::string cache = folder.write("cache", "one");
  const MachineFacts here = read_machine_facts();
  for (const bool written : {false, true}) {
    const User user(cache, data, log, MAP_SHARED, written ? PROT_READ | PROT_WRITE : PROT_READ);
    const Requirements wanted = gathered(user.pid());
    folder.write("cache", "one");
    if (written) {
      CHECK(only(unmet(wanted, here), UnmetKind::kDataFile).what == cache);
    } else {
      CHECK(unmet(wanted, here).empty());
    }
    folder.write("cache", "two");
    CHECK(only(unmet(wanted, here), UnmetKind::kDataFile).what == cache);
    folder.write("cache", "one");
  }
}

TEST(data_on_storage_that_machines_share_is_told_by_its_number) {
  Folder folder;
  const std::string log = folder.write("log", "");
  struct stat status {};
  CHECK(::stat(log.c_str(), &status) == 0);
  Requirements wanted = bare();
  wanted.files = {{.use = FileUse::kOpen,
                   .path = log,
                   .type = S_IFREG,
                   .device = 77,  // each machine numbers its mounts itself
                   .inode = status.st_ino,
                   .written = true,
                   .on_network = true}};
  only(unmet(wanted, read_machine_facts()), UnmetKind::kDataFile);  // it is a local file here
}

TEST(devices_and_kinds_must_be_the_same_here) {
  Requirements wanted = bare();
  wanted.files = {{.use = FileUse::kOpen,
                   .path = "/dev/null",
                   .type = S_IFCHR,
                   .special = gnu_dev_makedev(1, 3)}};
  const MachineFacts here = read_machine_facts();
  CHECK(unmet(wanted, here).empty());
  wanted.files[0].special = gnu_dev_makedev(1, 5);
  CHECK(only(unmet(wanted, here), UnmetKind::kDevice).why.find("1:3") != std::string::npos);
  wanted.files[0].type = S_IFREG;
  only(unmet(wanted, here), UnmetKind::kDataFile);
  wanted.files = {{.use = FileUse::kDirectory, .path = "/nonexistent/replpage", .type = S_IFDIR}};
  only(unmet(wanted, here), UnmetKind::kDataFile);
}

TEST(a_processor_that_lacks_what_the_primary_has_is_refused) {
  const Requirements wanted = bare();
  MachineFacts here = wanted.machine;
  CHECK(unmet(wanted, here).empty());
  for (CpuidWord& word : here.cpu) {
    if (word.leaf == 7 && word.subleaf == 0) word.bits = 0;
  }
  const Unmet found = only(unmet(wanted, here), UnmetKind::kProcessor);
  CHECK(found.what == [&] {
    std::string names;
    for (const std::string& name : lacking_features(wanted.machine, here)) {
      names += (names.empty() ? "" : " ") + name;
    }
    return names;
  }());
  // One that has more will do.
  Requirements less = bare();
  for (CpuidWord& word : less.machine.cpu) word.bits &= word.bits - 1;
  CHECK(unmet(less, read_machine_facts()).empty());
}

TEST(registers_must_have_room_in_the_same_places) {
  Requirements wanted = bare();
  const MachineFacts here = read_machine_facts();
  wanted.machine.xstate_bytes += 64;
  CHECK(only(unmet(wanted, here), UnmetKind::kXstate).what == "XSAVE area");
  wanted = bare();
  if (wanted.machine.xstate.empty()) SKIP("no extended registers here");
  wanted.machine.xstate[0].offset += 64;
  CHECK(only(unmet(wanted, here), UnmetKind::kXstate).what.starts_with("XSAVE component"));
}

TEST(another_vdso_is_refused_where_it_is_mapped) {
  Requirements wanted = bare();
  CHECK_EQUAL(wanted.machine.vdso_sha256.size(), 32u);
  CHECK(wanted.machine.vdso_bytes != 0 && wanted.machine.vvar_bytes != 0);
  wanted.machine.vdso_sha256[5] ^= 1;
  wanted.machine.release = "6.1.0-other";
  const Unmet found = only(unmet(wanted, read_machine_facts()), UnmetKind::kVdso);
  CHECK(found.why.find("6.1.0-other") != std::string::npos);
  wanted.uses_vdso = false;
  CHECK(unmet(wanted, read_machine_facts()).empty());
}

TEST(settings_of_the_kernel_must_allow_the_group) {
  Requirements wanted = bare();
  MachineFacts here = read_machine_facts();
  wanted.highest_pid = here.pid_max;
  wanted.most_mappings = here.mappings_max;
  wanted.highest_descriptor = here.descriptors_max;
  CHECK_EQUAL(unmet(wanted, here).size(), 3u);
  wanted = bare();
  here.ptrace_scope = 3;
  only(unmet(wanted, here), UnmetKind::kLimit);
  here = read_machine_facts();
  here.page_bytes = 16384;
  only(unmet(wanted, here), UnmetKind::kMachine);
  here = read_machine_facts();
  here.architecture = "aarch64";
  only(unmet(wanted, here), UnmetKind::kMachine);
  wanted.bound = {"SysV shared memory segment 7"};
  only(unmet(wanted, read_machine_facts()), UnmetKind::kBound);
}

}  // namespace
}  // namespace replpage
