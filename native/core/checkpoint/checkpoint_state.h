// What a checkpoint has besides pages: the kernel state of one epoch, and where the pages are.
#pragma once

#include <string>

#include "core/channel/messages.h"
#include "core/image/group_image.h"

namespace replpage {

// Runs of a shared object have a pid below zero in a checkpoint: objects are numbered from 0 on.
constexpr int32_t pid_of_object(uint32_t id) { return -static_cast<int32_t>(id) - 1; }
constexpr uint32_t object_of_pid(int32_t pid) { return static_cast<uint32_t>(-(pid + 1)); }

// Runs of processes and of shared objects; kCold with a location in the segments of the checkpoint,
// and kZero.
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
