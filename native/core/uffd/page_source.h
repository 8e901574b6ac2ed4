// Where the missing pages of a running process are read from.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

namespace replpage {

// Content that is there, but not what was put there: it must never reach a program.
class PageDamaged : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Pages that follow each other, and where they go.
struct PagesWanted {
  uint64_t position = 0;
  std::span<uint8_t> into;
};

// All methods may be called by any thread, at the same time.
class PageSource {
 public:
  virtual ~PageSource() = default;

  // Whole pages from `position` on. May wait for a device, for as long as it takes. Throws
  // PageDamaged, and anything else when the source is lost for good.
  virtual void read(uint64_t position, std::span<uint8_t> buffer) = 0;

  // As read(), but false where that would have to wait.
  virtual bool try_read(uint64_t position, std::span<uint8_t> buffer) = 0;

  // Reads much at once, ascending by position. False: not all of it could be had so, and read() is
  // to be asked for each.
  [[nodiscard]] virtual bool read_many(std::span<const PagesWanted> /*wanted*/) { return false; }

  // What is there, and what comes after it, is going to be read. A hint; may wait for a device.
  virtual void expect(uint64_t /*position*/) {}
  // Whether expect() would do something that it has not done yet. Never waits.
  [[nodiscard]] virtual bool may_expect(uint64_t /*position*/) { return false; }

  [[nodiscard]] virtual bool waits_for_device() const { return false; }

  // Nobody waits for what is being read any more.
  virtual void give_up() {}

  // Why read() does not come back at present; empty: nothing is known to be wrong.
  [[nodiscard]] virtual std::string trouble() const { return {}; }
};

}  // namespace replpage
