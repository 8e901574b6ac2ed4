// What is looked at before a drill: whether the replica in sync on its node could run there, and
// has in its memory what the primary has.
#pragma once

#include <string>

#include "core/group/group_context.h"

namespace replpage {

class DrillCheck {
 public:
  DrillCheck(GroupContext& context, std::string node);

  // Worker thread, between two epochs, again and again: a part of it, so that epochs go on in
  // between. False: it is over.
  bool go_on();

  // Why it would not run; empty: nothing was found.
  [[nodiscard]] const std::string& problem() const { return problem_; }
  [[nodiscard]] uint64_t compared_pages() const { return compared_.pages; }

 private:
  GroupContext& context_;
  const std::string node_;
  bool began_ = false;
  std::string problem_;
  GroupCapture::CopyCursor cursor_;
  GroupCapture::Compared compared_;
};

}  // namespace replpage
