#include "core/peer/tls_context.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstring>
#include <regex>

namespace replpage {
namespace {

// The wire form of the protocol's name: a length, then so many bytes.
constexpr unsigned char kProtocol[] = "\x10replpage-pages/1";
constexpr size_t kProtocolBytes = sizeof kProtocol - 1;
static_assert(kProtocolBytes == 1 + 0x10);

// The first is the fastest where the processor has AES, which is everywhere by now.
constexpr const char* kCiphers =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
struct FreeCertificate {
  void operator()(X509* certificate) const { X509_free(certificate); }
};
struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
struct FreeNames {
  void operator()(GENERAL_NAMES* names) const { GENERAL_NAMES_free(names); }
};

std::unique_ptr<BIO, FreeBio> text_of(const std::string& pem) {
  return std::unique_ptr<BIO, FreeBio>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

std::unique_ptr<X509, FreeCertificate> read_certificate(const std::string& pem, const char* whose) {
  std::unique_ptr<X509, FreeCertificate> read(
      PEM_read_bio_X509(text_of(pem).get(), nullptr, nullptr, nullptr));
  if (!read) throw PeerError(std::string("cannot read the certificate of ") + whose);
  return read;
}

int choose_protocol(SSL* /*ssl*/, const unsigned char** chosen, unsigned char* chosen_bytes,
                    const unsigned char* offered, unsigned int offered_bytes, void* /*none*/) {
  unsigned char* found = nullptr;
  if (SSL_select_next_proto(&found, chosen_bytes, kProtocol, kProtocolBytes, offered,
                            offered_bytes) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *chosen = found;
  return SSL_TLSEXT_ERR_OK;
}

void set_protocol(SSL_CTX* context, TlsRole role) {
  if (role == TlsRole::kServer) {
    SSL_CTX_set_alpn_select_cb(context, choose_protocol, nullptr);
  } else if (SSL_CTX_set_alpn_protos(context, kProtocol, kProtocolBytes) != 0) {
    throw PeerError("cannot set the protocol: " + tls_reason());
  }
}

}  // namespace

TlsContext::TlsContext(const NodeCredentials& credentials, TlsRole role)
    : cluster_(credentials.cluster),
      role_(role),
      context_(SSL_CTX_new(role == TlsRole::kClient ? TLS_client_method() : TLS_server_method())) {
  SSL_CTX* context = context_.get();
  if (context == nullptr) throw PeerError("cannot prepare TLS: " + tls_reason());
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  const auto ca = read_certificate(credentials.ca, "the cluster's CA");
  const auto own = read_certificate(credentials.certificate, "this node");
  const std::unique_ptr<EVP_PKEY, FreeKey> key(
      PEM_read_bio_PrivateKey(text_of(credentials.private_key).get(), nullptr, nullptr, nullptr));
  if (SSL_CTX_set_ciphersuites(context, kCiphers) != 1 ||
      X509_STORE_add_cert(SSL_CTX_get_cert_store(context), ca.get()) != 1 ||
      SSL_CTX_use_certificate(context, own.get()) != 1 || !key ||
      SSL_CTX_use_PrivateKey(context, key.get()) != 1 || SSL_CTX_check_private_key(context) != 1) {
    throw PeerError("cannot use the certificate of this node: " + tls_reason());
  }
  set_protocol(context, role);
}

NodeIdentity identity_of(X509* certificate) {
  const std::unique_ptr<GENERAL_NAMES, FreeNames> names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  if (names && sk_GENERAL_NAME_num(names.get()) == 1) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), 0);
    if (name->type == GEN_URI) {
      const ASN1_STRING* uri = name->d.uniformResourceIdentifier;
      const std::string text(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                             static_cast<size_t>(ASN1_STRING_length(uri)));
      static const std::regex form(
          "replpage://([0-9a-f]{16})/([0-9a-f]{16})/([A-Za-z0-9_.-]{1,63})");
      std::smatch parts;
      if (std::regex_match(text, parts, form)) {
        return {.cluster = parts[1], .id = parts[2], .name = parts[3]};
      }
    }
  }
  throw PeerError("the certificate is not one of a replpage node");
}

std::string tls_reason() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  return reason == nullptr ? "no reason is given" : reason;
}

}  // namespace replpage
