// Cold pages, read from the page store.
#pragma once

#include <array>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/channel/messages.h"
#include "core/store/segment_reader.h"
#include "core/uffd/page_source.h"

namespace replpage {

// Positions are store locations, and a read stays within one record. A store that does not answer,
// or answers with an operating error, is waited for and shows as trouble(); what is damaged, or has
// been gone for a while, is PageDamaged.
class StoreSource final : public PageSource {
 public:
  // `directory`: of the generation that `store` names.
  StoreSource(UniqueFd directory, const StoreMessage& store);

  void read(uint64_t position, std::span<uint8_t> buffer) override;
  bool try_read(uint64_t position, std::span<uint8_t> buffer) override;
  bool read_many(std::span<const PagesWanted> wanted) override;
  void expect(uint64_t position) override;
  [[nodiscard]] bool may_expect(uint64_t position) override;
  [[nodiscard]] bool waits_for_device() const override { return true; }
  void give_up() override;
  [[nodiscard]] std::string trouble() const override;

 private:
  class Lease;
  std::unique_ptr<SegmentReader> make_reader() const;
  bool is_expected(uint64_t window) const;
  bool note_expected(uint64_t window);
  void note_trouble(const std::string& what);
  // False: nobody wants it any more.
  bool pause(uint64_t us);

  UniqueFd directory_;
  StoreKey key_;
  std::string path_;
  bool encrypted_;
  GenerationName of_;
  mutable std::mutex mutex_;
  std::condition_variable given_up_changed_;
  bool given_up_ = false;
  std::string trouble_;
  std::array<uint64_t, 16> expected_{};  // windows of segments that were asked for lately
  size_t expected_next_ = 0;
  std::vector<std::unique_ptr<SegmentReader>> idle_;  // one for each thread that reads
};

}  // namespace replpage
