#include "core/store/store_error.h"

#include <cerrno>
#include <cstring>

namespace replpage {
namespace {

StoreFailure kind_of(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return StoreFailure::kFull;
    case ENOENT:
    case ENOTDIR:
    case ESTALE:
      return StoreFailure::kGone;
    case EACCES:
    case EPERM:
    case EROFS:
    case ELOOP:
    case EISDIR:
    case EEXIST:
      return StoreFailure::kUnusable;
    default:
      return StoreFailure::kIo;
  }
}

}  // namespace

StoreError store_error(const std::string& operation, const std::string& path, int error) {
  return {kind_of(error), "page store: " + operation + " " + path + ": " + strerrordesc_np(error),
          error};
}

void throw_store_error(const std::string& operation, const std::string& path) {
  const StoreError error = store_error(operation, path, errno);
  if (error.kind() == StoreFailure::kFull) throw StoreFull(error.what(), error.error());
  throw error;
}

}  // namespace replpage
