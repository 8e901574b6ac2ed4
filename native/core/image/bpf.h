// Small BPF programs (bpf(2)) written down as instructions, and memory shared with them.
#pragma once

#include <linux/bpf.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/unique_fd.h"

namespace replpage::bpf {

// The instructions that the programs need (Documentation/bpf/standardization).
using Instruction = bpf_insn;
constexpr Instruction instruction(uint8_t code, uint8_t to, uint8_t from, int16_t offset,
                                  int32_t value) {
  return {.code = code, .dst_reg = to, .src_reg = from, .off = offset, .imm = value};
}
constexpr Instruction move(uint8_t to, uint8_t from) {
  return instruction(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}
constexpr Instruction set(uint8_t to, int32_t value) {
  return instruction(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}
constexpr Instruction add(uint8_t to, uint8_t from) {
  return instruction(BPF_ALU64 | BPF_ADD | BPF_X, to, from, 0, 0);
}
constexpr Instruction alu(uint8_t operation, uint8_t to, int32_t value) {
  return instruction(BPF_ALU64 | operation | BPF_K, to, 0, 0, value);
}
constexpr Instruction load(uint8_t size, uint8_t to, uint8_t from, int16_t offset) {
  return instruction(BPF_LDX | size | BPF_MEM, to, from, offset, 0);
}
constexpr Instruction store(uint8_t size, uint8_t to, uint8_t from, int16_t offset) {
  return instruction(BPF_STX | size | BPF_MEM, to, from, offset, 0);
}
constexpr Instruction jump_if(uint8_t comparison, uint8_t left, int32_t value, int16_t distance) {
  return instruction(BPF_JMP | comparison | BPF_K, left, 0, distance, value);
}
constexpr Instruction jump(int16_t distance) {
  return instruction(BPF_JMP | BPF_JA, 0, 0, distance, 0);
}
constexpr Instruction call_helper(int32_t id) {
  return instruction(BPF_JMP | BPF_CALL, 0, 0, 0, id);
}
constexpr Instruction call_kernel(uint32_t type) {
  return instruction(BPF_JMP | BPF_CALL, 0, BPF_PSEUDO_KFUNC_CALL, 0, static_cast<int32_t>(type));
}

// Loads a program. Throws SysError: not allowed (EPERM), or not understood by this kernel (EINVAL,
// EACCES).
UniqueFd load_program(bpf_prog_type type, uint32_t flags, std::span<const Instruction> program);

// A program for an iterator of the kernel, by the type id of its function. Throws SysError.
UniqueFd load_iterator(uint32_t function, std::span<const Instruction> program);

// Over one task, as an iterator of tasks: reading from it runs the program. Invalid: there is no
// such thread. Throws SysError.
UniqueFd iterate_task(const UniqueFd& program, uint32_t tid);

// Runs a program at each hit of a tracepoint until the descriptor is closed. Throws SysError.
UniqueFd attach_to_tracepoint(const char* name, const UniqueFd& program);

// An array map with one value, mapped into our memory too.
class SharedArea {
 public:
  // Throws SysError.
  explicit SharedArea(size_t bytes);
  ~SharedArea();
  SharedArea(const SharedArea&) = delete;
  SharedArea& operator=(const SharedArea&) = delete;

  [[nodiscard]] int map() const { return map_.get(); }  // for BPF_PSEUDO_MAP_VALUE
  [[nodiscard]] void* data() const { return data_; }

 private:
  UniqueFd map_;
  void* data_ = nullptr;
  size_t bytes_;
};

}  // namespace replpage::bpf
