// Lazy ranges against a model, page by page.
#include "core/uffd/lazy_ranges.h"

#include <map>
#include <random>

#include "test/test.h"

namespace replpage {
namespace {

TEST(lazy_ranges_agree_with_a_page_by_page_model) {
  constexpr uint64_t kPages = 64;
  constexpr uint64_t kFirst = 512 - 32;  // so that a block of the list ends in the middle
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    LazyRanges ranges;
    std::map<uint64_t, uint64_t> model;  // page -> source page
    for (int step = 0; step < 40; ++step) {
      const uint64_t start = kFirst + random() % kPages;
      const uint64_t length = 1 + random() % (kFirst + kPages - start);
      const uint64_t to = kFirst + kPages + random() % kPages;
      const PageRange range{start * kPageSize, (start + length) * kPageSize};
      const int what = static_cast<int>(random() % 3);
      if (what == 0) {
        ranges.add(range, {0, (1000 + start) * kPageSize});
        for (uint64_t p = start; p < start + length; ++p) model[p] = 1000 + p;
      } else if (what == 1) {
        ranges.erase(range);
        for (uint64_t p = start; p < start + length; ++p) model.erase(p);
      } else {
        ranges.move(range.start, to * kPageSize, range.bytes());
        std::map<uint64_t, uint64_t> moved;
        for (uint64_t p = start; p < start + length; ++p) {
          if (model.contains(p)) moved[p - start + to] = model[p];
          model.erase(p);
        }
        for (uint64_t p = to; p < to + length; ++p) model.erase(p);
        model.insert(moved.begin(), moved.end());
      }
      CHECK(ranges.pages() == model.size() && ranges.empty() == model.empty());
      std::vector<LazyPiece> listed;
      ranges.list_from(0, SIZE_MAX, listed);
      uint64_t pages = 0;
      for (const LazyPiece& piece : listed) {
        for (uint64_t at = piece.start; at < piece.end; at += kPageSize, ++pages) {
          CHECK_EQUAL(piece.from.after(at - piece.start).position,
                      model.at(at / kPageSize) * kPageSize);
        }
      }
      CHECK_EQUAL(pages, model.size());
      for (uint64_t p = kFirst - 2; p < kFirst + 3 * kPages; ++p) {
        const auto piece = ranges.at(p * kPageSize);
        CHECK(piece.has_value() == model.contains(p));
        if (piece) CHECK(piece->from.position == model[p] * kPageSize);
        const auto next = ranges.first_from(p * kPageSize);
        const auto expected = model.lower_bound(p);
        CHECK(next.has_value() == (expected != model.end()));
        if (next) CHECK(next->start == expected->first * kPageSize);
      }
    }
  }
}

// A standby of 10 GiB of which 30 % are used, page by page, keeps a piece for every third page.
TEST(lazy_ranges_are_small) {
  LazyRanges ranges;
  constexpr uint64_t kPieces = 200'000;
  for (uint64_t i = 0; i < kPieces; ++i) {
    ranges.add({3 * i * kPageSize, (3 * i + 1) * kPageSize}, {0, i << 22});
  }
  CHECK_EQUAL(ranges.pages(), kPieces);
  CHECK(ranges.memory_bytes() < kPieces * 32);
  testing::note(std::to_string(ranges.memory_bytes() / kPieces) + " bytes a piece");
  ranges.erase({0, UINT64_MAX & ~(kPageSize - 1)});
  CHECK(ranges.empty() && ranges.pages() == 0 && ranges.memory_bytes() == 0);
}

}  // namespace
}  // namespace replpage
