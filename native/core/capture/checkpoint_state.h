// What a checkpoint has besides pages: the kernel state of one epoch, and where the pages are.
#pragma once

#include <string>

#include "core/channel/messages.h"
#include "core/image/group_image.h"

namespace replpage {

// Runs: of processes, and with a pid below zero of the shared object -pid; kCold with a location in
// the segments of the checkpoint, and kZero.
struct CheckpointState {
  GroupImage image;
  PageRunList pages;
  template <class A>
  void visit(A& a) {
    a(image, pages);
  }
};

// Throws FormatError when the runs cannot be those of the image. The image has been checked.
void check_checkpoint_state(const CheckpointState& state);

// Of the running kernel: a process that has its vdso mapped runs on no other.
std::string kernel_name();

// What an image has that no restore could bring back. Throws RefusedError.
void refuse_unrestorable(const GroupImage& image, pid_t host_pid);

}  // namespace replpage
