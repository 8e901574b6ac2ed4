#include "core/peer/tls_stream.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <memory>

#include "core/base/clock.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Sent and received at once: a system call for each record of 16 KiB would cost as much as its
// encryption.
constexpr size_t kSendBytes = 256 * 1024;
constexpr size_t kReceiveBytes = 256 * 1024;
constexpr int kBacklog = 64;

// False: the time is over.
bool wait_until(int fd, short events, uint64_t end_us) {
  for (;;) {
    const uint64_t now = now_us();
    const int left_ms = now >= end_us ? 0 : static_cast<int>((end_us - now) / 1000 + 1);
    pollfd item{.fd = fd, .events = events, .revents = 0};
    const int ready = ::poll(&item, 1, left_ms);
    if (ready > 0) return true;
    if (ready == 0 && left_ms == 0) return false;
    if (ready < 0 && errno != EINTR) throw SysError::from_errno("poll of a connection");
  }
}

struct FreeAddresses {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};

std::unique_ptr<addrinfo, FreeAddresses> look_up(const std::string& host, uint16_t port,
                                                 int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0) throw PeerError("there is no host " + host + ": " + ::gai_strerror(error));
  return std::unique_ptr<addrinfo, FreeAddresses>(found);
}

}  // namespace

TlsStream::TlsStream(UniqueFd socket, const TlsContext& context, int timeout_ms)
    : socket_(std::move(socket)), ssl_(SSL_new(context.get())) {
  BIO* bio = BIO_new(method());
  if (!ssl_ || bio == nullptr) {
    BIO_free(bio);
    throw PeerError("cannot prepare a connection: " + tls_reason());
  }
  records_->socket = socket_.get();
  records_->sealed.reserve(kSendBytes + kSendBytes / 4);
  BIO_set_data(bio, records_.get());
  SSL_set_bio(ssl_.get(), bio, bio);
  const int on = 1;
  if (::fcntl(socket_.get(), F_SETFL, O_NONBLOCK) != 0 ||
      ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) {
    throw SysError::from_errno("prepare a socket");
  }
  shake_hands(context.role() == TlsRole::kClient, timeout_ms);
  check_peer(context.cluster());
}

// Without a word to the other side, which sees the connection end: what was sent is either whole,
// as its frames tell, or of no use.
TlsStream::~TlsStream() = default;

// What OpenSSL's own reading ahead does not do without moving all that is left with each record.
int TlsStream::give(BIO* bio, char* into, int size) {
  auto& records = *static_cast<Records*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  if (records.taken == records.filled) {
    if (records.received.empty()) records.received.resize(kReceiveBytes);
    ssize_t got = 0;
    do {
      got = ::recv(records.socket, records.received.data(), records.received.size(), MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN) BIO_set_retry_read(bio);
    if (got <= 0) return static_cast<int>(got);
    records.taken = 0;
    records.filled = static_cast<size_t>(got);
  }
  const size_t bytes = std::min(records.filled - records.taken, static_cast<size_t>(size));
  std::memcpy(into, records.received.data() + records.taken, bytes);
  records.taken += bytes;
  return static_cast<int>(bytes);
}

BIO_METHOD* TlsStream::method() {
  static BIO_METHOD* const made = [] {
    BIO_METHOD* fresh = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "replpage");
    BIO_meth_set_create(fresh, [](BIO* bio) {
      BIO_set_init(bio, 1);
      return 1;
    });
    BIO_meth_set_write(fresh, [](BIO* bio, const char* bytes, int size) {
      auto& records = *static_cast<Records*>(BIO_get_data(bio));
      records.sealed.insert(records.sealed.end(), bytes, bytes + size);
      return size;
    });
    BIO_meth_set_read(fresh, &TlsStream::give);
    BIO_meth_set_ctrl(fresh, [](BIO* /*bio*/, int command, long /*number*/, void* /*pointer*/) {
      return command == BIO_CTRL_FLUSH ? 1L : 0L;
    });
    return fresh;
  }();
  return made;
}

void TlsStream::shake_hands(bool connecting, int timeout_ms) {
  const uint64_t end_us = now_us() + static_cast<uint64_t>(timeout_ms) * 1000;
  for (;;) {
    ERR_clear_error();
    errno = 0;
    const int done = connecting ? SSL_connect(ssl_.get()) : SSL_accept(ssl_.get());
    const int error = SSL_get_error(ssl_.get(), done);
    if (done != 1 && error != SSL_ERROR_WANT_READ) {
      const int saved = errno;
      try {
        flush();  // the other side is told why
      } catch (const PeerError&) {
      }
      errno = saved;
      fail("the handshake failed", done);
    }
    const bool sent = flush();
    if (sent && done == 1) return;
    const short events = sent ? POLLIN : POLLOUT;
    if (!wait_until(socket_.get(), events, end_us)) {
      throw PeerError("the handshake took longer than " + std::to_string(timeout_ms / 1000) + " s");
    }
  }
}

void TlsStream::check_peer(const std::string& cluster) {
  struct FreeCertificate {
    void operator()(X509* certificate) const { X509_free(certificate); }
  };
  const std::unique_ptr<X509, FreeCertificate> certificate(SSL_get1_peer_certificate(ssl_.get()));
  if (!certificate) throw PeerError("the other side has no certificate");
  peer_ = identity_of(certificate.get());
  if (peer_.cluster != cluster) throw PeerError("the certificate is one of another cluster");
  const unsigned char* protocol = nullptr;
  unsigned int bytes = 0;
  SSL_get0_alpn_selected(ssl_.get(), &protocol, &bytes);
  if (bytes == 0) throw PeerError("the other side does not speak of pages");
}

void TlsStream::fail(const char* doing, int result) {
  const int saved = errno;
  const int error = SSL_get_error(ssl_.get(), result);
  if (error == SSL_ERROR_ZERO_RETURN) throw PeerError("the other side has hung up");
  const long verified = SSL_get_verify_result(ssl_.get());
  if (verified != X509_V_OK) {
    throw PeerError(std::string("its certificate is not believed: ") +
                    X509_verify_cert_error_string(verified));
  }
  if (error == SSL_ERROR_SYSCALL) {
    ERR_clear_error();
    if (saved == 0 || saved == ECONNRESET || saved == EPIPE) {
      throw PeerError("the other side has hung up");
    }
    throw PeerError(std::string(doing) + ": " + std::strerror(saved));
  }
  const unsigned long code = ERR_peek_error();
  if (ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
    ERR_clear_error();
    throw PeerError("the other side has hung up");
  }
  throw PeerError(std::string(doing) + ": " + tls_reason());
}

size_t TlsStream::read(std::span<uint8_t> into) {
  if (into.empty()) return 0;
  ERR_clear_error();
  errno = 0;
  const int asked = static_cast<int>(std::min<size_t>(into.size(), INT_MAX));
  const int got = SSL_read(ssl_.get(), into.data(), asked);
  if (got > 0) return static_cast<size_t>(got);
  const int error = SSL_get_error(ssl_.get(), got);
  if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return 0;
  fail("reading failed", got);
}

size_t TlsStream::write(std::span<const uint8_t> from) {
  size_t taken = 0;
  while (taken < from.size() && records_->sealed.size() < kSendBytes) {
    ERR_clear_error();
    errno = 0;
    const int asked = static_cast<int>(std::min<size_t>(from.size() - taken, INT_MAX));
    const int put = SSL_write(ssl_.get(), from.data() + taken, asked);
    if (put <= 0) fail("writing failed", put);
    taken += static_cast<size_t>(put);
  }
  return taken;
}

bool TlsStream::flush() {
  Records& records = *records_;
  while (records.sent < records.sealed.size()) {
    const ssize_t put = ::send(socket_.get(), records.sealed.data() + records.sent,
                               records.sealed.size() - records.sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && errno == EAGAIN) return false;
    if (put < 0 && (errno == EPIPE || errno == ECONNRESET)) {
      throw PeerError("the other side has hung up");
    }
    if (put < 0) throw PeerError(std::string("sending failed: ") + std::strerror(errno));
    records.sent += static_cast<size_t>(put);
  }
  records.sealed.clear();
  records.sent = 0;
  return true;
}

UniqueFd connect_to(const std::string& host, uint16_t port, int timeout_ms) {
  const auto addresses = look_up(host, port, 0);
  const uint64_t end_us = now_us() + static_cast<uint64_t>(timeout_ms) * 1000;
  int error = 0;
  for (const addrinfo* one = addresses.get(); one != nullptr; one = one->ai_next) {
    UniqueFd socket(::socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.valid()) throw SysError::from_errno("socket");
    if (::connect(socket.get(), one->ai_addr, one->ai_addrlen) == 0) return socket;
    error = errno;
    if (error != EINPROGRESS) continue;
    if (!wait_until(socket.get(), POLLOUT, end_us)) {
      error = ETIMEDOUT;
      break;
    }
    socklen_t size = sizeof error;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error == 0) return socket;
  }
  throw PeerError("cannot connect to " + host + " port " + std::to_string(port) + ": " +
                  std::strerror(error));
}

UniqueFd listen_at(const std::string& host, uint16_t port, uint16_t& bound_port) {
  const auto addresses = look_up(host, port, AI_PASSIVE);
  const addrinfo& one = *addresses;
  UniqueFd socket(::socket(one.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) throw SysError::from_errno("socket");
  const int on = 1;
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (::bind(socket.get(), one.ai_addr, one.ai_addrlen) != 0 ||
      ::listen(socket.get(), kBacklog) != 0 ||
      ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    throw SysError::from_errno("listen for replicas on " + host + " port " + std::to_string(port));
  }
  // The port lies at the same place for both families.
  bound_port = ntohs(reinterpret_cast<const sockaddr_in&>(bound).sin_port);
  return socket;
}

}  // namespace replpage
