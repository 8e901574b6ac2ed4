// What a node shows of itself to another, and whom it believes: the certificates of the cluster
// (docs/decisions/004), for connections that carry pages. The rules are those of the connections
// that Node.js makes: TLS 1.3 alone, certificates on both sides, no resumption.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <stdexcept>
#include <string>

namespace replpage {

// The connection with a node is of no use any more. what() says why, in words.
class PeerError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct NodeCredentials {
  std::string cluster;                       // 16 hexadecimal digits
  std::string certificate, private_key, ca;  // PEM
};

// Whose certificate it is: replpage://CLUSTER/ID/NAME, its one alternative name.
struct NodeIdentity {
  std::string cluster, id, name;
};

enum class TlsRole : uint8_t { kClient, kServer };

class TlsContext {
 public:
  // Throws PeerError when one of the three cannot be used.
  TlsContext(const NodeCredentials& credentials, TlsRole role);

  [[nodiscard]] SSL_CTX* get() const { return context_.get(); }
  [[nodiscard]] const std::string& cluster() const { return cluster_; }
  [[nodiscard]] TlsRole role() const { return role_; }

 private:
  struct Free {
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  };
  std::string cluster_;
  TlsRole role_;
  std::unique_ptr<SSL_CTX, Free> context_;
};

// Throws PeerError unless the certificate is one of a node.
NodeIdentity identity_of(X509* certificate);

// The oldest of OpenSSL's errors of this thread, in words; forgets the rest.
std::string tls_reason();

}  // namespace replpage
