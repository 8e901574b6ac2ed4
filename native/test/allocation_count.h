// Counts what the test program allocates, to show that damaged input never makes a decoder allocate
// much.
#pragma once

#include <cstddef>

namespace replpage::testing {

// Bytes asked of operator new by all threads since the program started; never reduced.
size_t allocated_bytes();

}  // namespace replpage::testing
