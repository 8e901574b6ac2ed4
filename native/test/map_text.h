// Lines of /proc/PID/maps as "start-end rwxp", adjacent equal ones joined: what a replica has, and
// what it should have.
#pragma once

#include <string>

#include "core/image/process_image.h"

namespace replpage::testing {

[[nodiscard]] std::string maps_of_image(const ProcessImage& process);
[[nodiscard]] std::string maps_of_text(const std::string& maps);

}  // namespace replpage::testing
