// What cannot be done at this stop of the primary, and can at another.
#pragma once

#include <stdexcept>

namespace replpage {

class NotThisTime : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace replpage
