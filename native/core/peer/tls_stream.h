// Bytes over TLS between two nodes, on a socket that never blocks. One thread at a time.
#pragma once

#include <openssl/ssl.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/peer/tls_context.h"

namespace replpage {

class TlsStream {
 public:
  // Takes a connected TCP socket and makes itself known, within timeout_ms. Throws PeerError, also
  // when the other side is no node of the cluster.
  TlsStream(UniqueFd socket, const TlsContext& context, int timeout_ms);
  ~TlsStream();
  TlsStream(TlsStream&&) = default;
  TlsStream& operator=(TlsStream&&) = delete;

  // How much could be read at once; 0: nothing for now. Throws PeerError when the connection is
  // over.
  size_t read(std::span<uint8_t> into);
  // How much was sealed, to be sent with what was before; 0: no room before flush().
  size_t write(std::span<const uint8_t> from);
  // Sends what the socket takes. True: all that was sealed is on its way. Throws PeerError.
  bool flush();

  // Something can be read although poll(2) does not say so.
  [[nodiscard]] bool has_pending() const {
    return records_->taken < records_->filled || SSL_has_pending(ssl_.get()) == 1;
  }

  [[nodiscard]] int fd() const { return socket_.get(); }
  [[nodiscard]] const NodeIdentity& peer() const { return peer_; }

 private:
  struct Free {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  // Records on their way between OpenSSL and the socket. Has its own place: OpenSSL knows it.
  struct Records {
    int socket = -1;
    std::vector<uint8_t> sealed;  // to be sent
    size_t sent = 0;
    std::vector<uint8_t> received;  // room, of which [taken, filled) is not opened yet
    size_t taken = 0, filled = 0;
  };
  static BIO_METHOD* method();
  static int give(BIO* bio, char* into, int size);
  void shake_hands(bool connecting, int timeout_ms);
  void check_peer(const std::string& cluster);
  [[noreturn]] void fail(const char* doing, int result);

  UniqueFd socket_;
  std::unique_ptr<Records> records_ = std::make_unique<Records>();
  std::unique_ptr<SSL, Free> ssl_;
  NodeIdentity peer_;
};

// Connects within timeout_ms. Throws PeerError.
UniqueFd connect_to(const std::string& host, uint16_t port, int timeout_ms);

// Listens; port 0: any that is free. Throws SysError.
UniqueFd listen_at(const std::string& host, uint16_t port, uint16_t& bound_port);

}  // namespace replpage
