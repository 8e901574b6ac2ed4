#include "core/uffd/uffd.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

// UFFDIO_POISON, since Linux 6.6 (include/uapi/linux/userfaultfd.h).
struct PoisonRequest {
  uffdio_range range;
  uint64_t mode;
  int64_t updated;
};
constexpr uint64_t kPoisonFeature = 1u << 14;
constexpr unsigned long kPoison = _IOWR(UFFDIO, 0x08, PoisonRequest);

// UFFDIO_COPY and UFFDIO_ZEROPAGE report progress in a field of their own, negative on failure.
FillResult result_of(int status, int64_t filled) {
  if (status == 0) return {.bytes = static_cast<uint64_t>(filled), .error = 0};
  const int error = errno;
  return {.bytes = filled > 0 ? static_cast<uint64_t>(filled) : 0, .error = error};
}

}  // namespace

void Uffd::enable(uint64_t features) const {
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  if (::ioctl(fd_.get(), UFFDIO_API, &api) != 0) throw SysError::from_errno("UFFDIO_API");
}

void Uffd::register_missing(PageRange range) const {
  uffdio_register wanted{.range = {.start = range.start, .len = range.bytes()},
                         .mode = UFFDIO_REGISTER_MODE_MISSING,
                         .ioctls = 0};
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &wanted) != 0) {
    throw SysError::from_errno("UFFDIO_REGISTER", {.pid = {}, .address = range.start, .path = {}});
  }
}

void Uffd::unregister(PageRange range) const {
  uffdio_range which{.start = range.start, .len = range.bytes()};
  if (::ioctl(fd_.get(), UFFDIO_UNREGISTER, &which) != 0) {
    throw SysError::from_errno("UFFDIO_UNREGISTER",
                               {.pid = {}, .address = range.start, .path = {}});
  }
}

FillResult Uffd::copy(uint64_t address, std::span<const uint8_t> content) const {
  uffdio_copy request{.dst = address,
                      .src = reinterpret_cast<uint64_t>(content.data()),
                      .len = content.size(),
                      .mode = 0,
                      .copy = 0};
  const int status = ::ioctl(fd_.get(), UFFDIO_COPY, &request);
  return result_of(status, request.copy);
}

FillResult Uffd::zero(PageRange range) const {
  uffdio_zeropage request{
      .range = {.start = range.start, .len = range.bytes()}, .mode = 0, .zeropage = 0};
  const int status = ::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &request);
  return result_of(status, request.zeropage);
}

void Uffd::wake(PageRange range) const {
  uffdio_range which{.start = range.start, .len = range.bytes()};
  (void)::ioctl(fd_.get(), UFFDIO_WAKE, &which);
}

FillResult Uffd::poison(PageRange range) const {
  PoisonRequest request{
      .range = {.start = range.start, .len = range.bytes()}, .mode = 0, .updated = 0};
  const int status = ::ioctl(fd_.get(), kPoison, &request);
  return result_of(status, request.updated);
}

bool Uffd::can_poison() {
  const UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  return fd.valid() && ::ioctl(fd.get(), UFFDIO_API, &api) == 0 &&
         (api.features & kPoisonFeature) != 0;
}

size_t Uffd::read(std::span<uffd_msg> messages) const {
  const ssize_t got = ::read(fd_.get(), messages.data(), messages.size_bytes());
  if (got >= 0) return static_cast<size_t>(got) / sizeof(uffd_msg);
  if (errno == EAGAIN || errno == EINTR) return 0;
  throw SysError::from_errno("read a userfaultfd");
}

}  // namespace replpage
