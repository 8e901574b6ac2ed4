// What tests of connections between nodes share: a cluster's CA and certificates of its nodes.
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

#include "core/peer/tls_context.h"
#include "test/test.h"

namespace replpage::peer_testing {

inline constexpr const char* kCluster = "00112233445566aa";
inline constexpr const char* kPrimaryNode = "aaaaaaaaaaaaaaaa";
inline constexpr const char* kReplicaNode = "bbbbbbbbbbbbbbbb";

struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
struct FreeCertificate {
  void operator()(X509* certificate) const { X509_free(certificate); }
};
using Key = std::unique_ptr<EVP_PKEY, FreeKey>;
using Certificate = std::unique_ptr<X509, FreeCertificate>;

template <class Write>
std::string as_pem(Write write) {
  BIO* bio = BIO_new(BIO_s_mem());
  CHECK(write(bio) == 1);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio, &text);
  std::string pem(text, static_cast<size_t>(size));
  BIO_free(bio);
  return pem;
}

// As `replpage init` makes it; what it signs is valid for an hour, or was until an hour ago.
class Authority {
 public:
  Authority() : key_(EVP_EC_gen("P-256")), certificate_(blank(key_, "CA", 3600)) {
    add(certificate_.get(), NID_basic_constraints, "critical,CA:TRUE");
    add(certificate_.get(), NID_key_usage, "critical,keyCertSign,cRLSign");
    CHECK(X509_sign(certificate_.get(), key_.get(), EVP_sha256()) > 0);
  }

  [[nodiscard]] NodeCredentials node(const std::string& id, const std::string& cluster = kCluster,
                                     long seconds = 3600) const {
    const Key key(EVP_EC_gen("P-256"));
    const Certificate made = blank(key, "node", seconds);
    X509_set_issuer_name(made.get(), X509_get_subject_name(certificate_.get()));
    add(made.get(), NID_key_usage, "critical,digitalSignature");
    add(made.get(), NID_ext_key_usage, "critical,serverAuth,clientAuth");
    add(made.get(), NID_subject_alt_name,
        ("URI:replpage://" + cluster + "/" + id + "/n" + id.substr(0, 2)).c_str());
    CHECK(X509_sign(made.get(), key_.get(), EVP_sha256()) > 0);
    return {.cluster = cluster,
            .certificate = as_pem([&](BIO* b) { return PEM_write_bio_X509(b, made.get()); }),
            .private_key = as_pem([&](BIO* b) {
              return PEM_write_bio_PrivateKey(b, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
            }),
            .ca = as_pem([&](BIO* b) { return PEM_write_bio_X509(b, certificate_.get()); })};
  }

 private:
  static Certificate blank(const Key& key, const char* name, long seconds) {
    Certificate made(X509_new());
    X509_set_version(made.get(), 2);
    static long serial = 1;
    ASN1_INTEGER_set(X509_get_serialNumber(made.get()), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(made.get()), -7200);
    X509_gmtime_adj(X509_getm_notAfter(made.get()), seconds);
    X509_set_pubkey(made.get(), key.get());
    X509_NAME* subject = X509_get_subject_name(made.get());
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(name), -1, -1, 0);
    X509_set_issuer_name(made.get(), subject);
    return made;
  }
  static void add(X509* certificate, int kind, const char* value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, kind, value);
    CHECK(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1);
    X509_EXTENSION_free(extension);
  }

  Key key_;
  Certificate certificate_;
};

}  // namespace replpage::peer_testing
