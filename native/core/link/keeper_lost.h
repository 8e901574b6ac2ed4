// The keeper said that its replica is lost, or went away.
#pragma once

#include <stdexcept>

namespace replpage {

// Protection has ended by no fault of the primary, which runs on untouched. what() is the reason.
class KeeperLost : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace replpage
