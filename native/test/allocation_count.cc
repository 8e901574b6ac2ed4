#include "test/allocation_count.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<size_t> total_bytes = 0;

}  // namespace

namespace replpage::testing {

size_t allocated_bytes() { return total_bytes; }

}  // namespace replpage::testing

void* operator new(size_t size) {
  total_bytes += size;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
