#include "test/descriptor_steps.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/descriptors.h"
#include "test/test.h"

namespace replpage::testing {

void must(bool good, const char* what) {
  if (!good) throw SysError::from_errno(what);
}

void place(int fd, int number, int flags) {
  must(fd >= 0, "open");
  if (fd == number) return;
  must(::dup3(fd, number, flags) == number, "dup3");
  ::close(fd);
}

std::string scratch() {
  static const std::string directory = [] {
    char name[] = "/tmp/replpage-test-XXXXXX";
    must(::mkdtemp(name) != nullptr, "mkdtemp");
    at_end([path = std::string(name)] {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    });
    return std::string(name);
  }();
  return directory;
}

void write_file(const std::string& path, const std::string& text) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  must(file.valid() &&
           ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()),
       "write");
}

std::string read_some(int fd) {
  char text[65536];
  const ssize_t got = ::read(fd, text, sizeof text);
  return got < 0 ? std::string("error ") + std::strerror(errno)
                 : std::string(text, static_cast<size_t>(got));
}

const OpenFileImage& file_of(const GroupImage& image, int fd, size_t table) {
  for (const DescriptorImage& d : image.file_tables.at(table).descriptors) {
    if (d.fd == fd) return image.open_files.at(d.open_file);
  }
  throw SysError("find fd " + std::to_string(fd), ENOENT);
}

std::function<void()> clean(std::function<void()> prepare) {
  return [prepare = std::move(prepare)] {
    ::close_range(3, ~0U, 0);
    for (int fd = 0; fd < 3; ++fd) place(::open("/dev/null", O_RDWR), fd);
    prepare();
  };
}

Captured move_descriptors(CallProcess& primary, CallProcess& replica, How how,
                          const std::string& stream_path) {
  const auto capture = DescriptorCapture::create();
  Captured captured = capture_group(*capture, {primary.pid()}, {replica.pid()});
  for (const Refusal& refusal : captured.refusals) note(refusal.object + ": " + refusal.why);
  CHECK(captured.refusals.empty());
  PromoteInput input;
  input.image = &captured.image;
  input.exact = how == How::kHandOver;
  if (how != How::kRecreate) input.handed = DescriptorCapture::take(captured.input, captured.image);
  if (!stream_path.empty()) {
    input.outside_stream = open_path(stream_path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  }
  if (how == How::kRecreate) primary.kill();
  ReplicaProcess* const processes[] = {&replica};
  (void)install_descriptors(input, processes);
  primary.kill();
  return captured;
}

std::vector<uint64_t> ready(CallProcess& process, int epoll) {
  SyscallBatch batch;
  const uint64_t at = batch.reserve(16 * sizeof(epoll_event));
  batch.add("epoll_wait", SYS_epoll_wait, {epoll, BatchArgument::data(at), 16, 0});
  const BatchResult result = process.run(batch);
  std::vector<uint64_t> data;
  for (long i = 0; i < result.results[0]; ++i) {
    epoll_event event{};
    std::memcpy(&event, result.data.data() + at + static_cast<size_t>(i) * sizeof event,
                sizeof event);
    data.push_back(event.data.u64);
  }
  return data;
}

}  // namespace replpage::testing
