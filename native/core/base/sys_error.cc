#include "core/base/sys_error.h"

#include <cstdio>
#include <cstring>

namespace replpage {
namespace {

std::string describe(const std::string& operation, int error, const ErrorObject& object) {
  std::string text = operation;
  if (object.pid) text += " of process " + std::to_string(*object.pid);
  if (object.address) {
    char hex[32];
    std::snprintf(hex, sizeof hex, " at 0x%llx", static_cast<unsigned long long>(*object.address));
    text += hex;
  }
  if (object.path) text += " " + *object.path;
  return text + ": " + strerrordesc_np(error);
}

}  // namespace

SysError::SysError(std::string operation, int error, ErrorObject object)
    : std::runtime_error(describe(operation, error, object)),
      error_(error),
      operation_(std::move(operation)),
      object_(std::move(object)) {}

}  // namespace replpage
