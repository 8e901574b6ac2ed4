// Whether memory can be swapped out at all.
#pragma once

namespace replpage {

// True when a swap area is active (/proc/swaps), or when that cannot be told. A page of a shared
// mapping then vanishes from the page tables together with what they knew of it.
bool swap_in_use();

}  // namespace replpage
