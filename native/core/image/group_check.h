// Tells a decoded group image that makes sense from damage that happens to decode (rule 6).
#pragma once

#include "core/image/group_image.h"

namespace replpage {

// Throws FormatError naming the process and what is wrong: a position outside its list, an address
// range that is empty, unaligned or out of order, an unknown kind, a number outside its range, a
// text that a system call would cut short. Whoever received an image calls this before using it.
void check_group_image(const GroupImage& image);

}  // namespace replpage
