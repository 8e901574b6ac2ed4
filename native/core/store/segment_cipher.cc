#include "core/store/segment_cipher.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <algorithm>
#include <mutex>
#include <string_view>
#include <vector>

#include "core/base/sys_error.h"
#include "core/store/store_error.h"

namespace replpage {
namespace {

constexpr size_t kDigestBytes = 32;
constexpr size_t kNonceBytes = 12;

using Nonce = std::array<uint8_t, kNonceBytes>;

// No configuration file is ever read: in a process that entered the namespaces of another, it would
// be a file of theirs, which names libraries to load.
void start_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, nullptr);
  });
}

void must(int result) {
  if (result != 1) throw std::runtime_error("page store: libcrypto failed");
}

std::span<const uint8_t> bytes_of_text(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::array<uint8_t, kDigestBytes> hmac_sha256(std::span<const uint8_t> key,
                                              std::span<const uint8_t> data) {
  std::array<uint8_t, kDigestBytes> digest{};
  unsigned size = 0;
  const uint8_t* done = HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), data.data(),
                             data.size(), digest.data(), &size);
  must(done != nullptr && size == kDigestBytes ? 1 : 0);
  return digest;
}

std::array<uint8_t, 16> key_check(const SegmentHeader& header, const StoreKey& key) {
  std::array<uint8_t, 16> check{};
  hkdf_sha256(key.bytes(), header.salt, bytes_of_text("replpage key check 1"), check);
  return check;
}

Nonce nonce_of(const RecordHeader& header) {
  Nonce nonce{};
  std::memcpy(nonce.data(), &header.position, sizeof header.position);
  std::memcpy(nonce.data() + 4, &header.attempt, sizeof header.attempt);
  return nonce;
}

}  // namespace

void hkdf_sha256(std::span<const uint8_t> key, std::span<const uint8_t> salt,
                 std::span<const uint8_t> info, std::span<uint8_t> into) {
  start_library();
  if (into.size() > kDigestBytes) throw std::runtime_error("hkdf_sha256: too long");
  auto extracted = hmac_sha256(salt, key);
  std::vector<uint8_t> block(info.begin(), info.end());
  block.push_back(1);
  auto expanded = hmac_sha256(extracted, block);
  std::copy_n(expanded.begin(), into.size(), into.begin());
  OPENSSL_cleanse(extracted.data(), extracted.size());
  OPENSSL_cleanse(expanded.data(), expanded.size());
}

void prepare_cipher() {
  SegmentHeader header{};
  const StoreKey key = StoreKey::random();
  salt_segment(header, &key);
  SegmentCipher cipher(header, &key, "");
  const std::array<uint8_t, kRecordAlignment> plain{};
  std::array<uint8_t, kRecordAlignment> payload{};
  (void)cipher.seal(RecordHeader{}, plain, payload.data());
}

void salt_segment(SegmentHeader& header, const StoreKey* key) {
  if (::getrandom(header.salt.data(), header.salt.size(), 0) !=
      static_cast<ssize_t>(header.salt.size())) {
    throw SysError::from_errno("getrandom");
  }
  header.flags = key == nullptr ? 0 : kSegmentEncrypted;
  header.key_check = {};
  if (key != nullptr) header.key_check = key_check(header, *key);
}

class SegmentCipher::State {
 public:
  State(const SegmentHeader& header, const StoreKey* key, const std::string& path)
      : header_(header) {
    if ((header.flags & kSegmentEncrypted) == 0) {
      if (key == nullptr) return;
      throw StoreError(StoreFailure::kWrongKey, "page store: " + path + " is not encrypted");
    }
    if (key == nullptr) {
      throw StoreError(StoreFailure::kWrongKey, "page store: " + path + " is encrypted");
    }
    if (key_check(header, *key) != header.key_check) {
      throw StoreError(StoreFailure::kWrongKey,
                       "page store: " + path + " was written with another key");
    }
    std::array<uint8_t, kDigestBytes> segment_key{};
    hkdf_sha256(key->bytes(), header.salt, bytes_of_text("replpage segment 1"), segment_key);
    context_ = EVP_CIPHER_CTX_new();
    must(context_ != nullptr ? 1 : 0);
    must(EVP_CipherInit_ex(context_, EVP_aes_256_gcm(), nullptr, segment_key.data(), nullptr, 1));
    OPENSSL_cleanse(segment_key.data(), segment_key.size());
  }
  ~State() { EVP_CIPHER_CTX_free(context_); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  RecordSeal seal(const RecordHeader& header, std::span<const uint8_t> plain, uint8_t* payload) {
    if (context_ == nullptr) {
      std::memcpy(payload, plain.data(), plain.size());
      return checksum(header, plain);
    }
    begin(header, true);
    int size = 0;
    must(EVP_CipherUpdate(context_, payload, &size, plain.data(), static_cast<int>(plain.size())));
    must(EVP_CipherFinal_ex(context_, payload + size, &size));
    RecordSeal tag{};
    must(EVP_CIPHER_CTX_ctrl(context_, EVP_CTRL_AEAD_GET_TAG, tag.size(), tag.data()));
    return tag;
  }

  bool open(const RecordHeader& header, std::span<const uint8_t> payload, RecordSeal seal,
            uint8_t* plain) {
    if (context_ == nullptr) {
      if (checksum(header, payload) != seal) return false;
      std::memcpy(plain, payload.data(), payload.size());
      return true;
    }
    begin(header, false);
    int size = 0;
    must(
        EVP_CipherUpdate(context_, plain, &size, payload.data(), static_cast<int>(payload.size())));
    must(EVP_CIPHER_CTX_ctrl(context_, EVP_CTRL_AEAD_SET_TAG, seal.size(), seal.data()));
    return EVP_CipherFinal_ex(context_, plain + size, &size) == 1;
  }

 private:
  void begin(const RecordHeader& header, bool encrypt) {
    const Nonce nonce = nonce_of(header);
    must(EVP_CipherInit_ex(context_, nullptr, nullptr, nullptr, nonce.data(), encrypt ? 1 : 0));
    int size = 0;
    for (const auto part : {bytes_of(header_), bytes_of(header)}) {
      must(EVP_CipherUpdate(context_, nullptr, &size, part.data(), static_cast<int>(part.size())));
    }
  }

  // Without the headers' own checksums: one over bytes and their checksum is always the same.
  [[nodiscard]] RecordSeal checksum(const RecordHeader& header,
                                    std::span<const uint8_t> payload) const {
    const auto segment = bytes_of(header_).first(offsetof(SegmentHeader, crc));
    const auto record = bytes_of(header).first(offsetof(RecordHeader, crc));
    const uint32_t crc = crc32c(payload, crc32c(record, crc32c(segment)));
    RecordSeal seal{};
    std::memcpy(seal.data(), &crc, sizeof crc);
    return seal;
  }

  SegmentHeader header_;
  EVP_CIPHER_CTX* context_ = nullptr;
};

SegmentCipher::SegmentCipher(const SegmentHeader& header, const StoreKey* key,
                             const std::string& path)
    : state_(std::make_unique<State>(header, key, path)) {}
SegmentCipher::~SegmentCipher() = default;
SegmentCipher::SegmentCipher(SegmentCipher&&) noexcept = default;
SegmentCipher& SegmentCipher::operator=(SegmentCipher&&) noexcept = default;

RecordSeal SegmentCipher::seal(const RecordHeader& header, std::span<const uint8_t> plain,
                               uint8_t* payload) {
  return state_->seal(header, plain, payload);
}

bool SegmentCipher::open(const RecordHeader& header, std::span<const uint8_t> payload,
                         const RecordSeal& seal, uint8_t* plain) {
  return state_->open(header, payload, seal, plain);
}

}  // namespace replpage
