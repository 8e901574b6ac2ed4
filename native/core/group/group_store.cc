#include "core/group/group_store.h"

namespace replpage {

PagerOptions pager_options(const GroupOptions& options, std::shared_ptr<const StoreKey> key) {
  const PagingOptions& paging = *options.paging;
  PagerOptions result;
  result.executable = paging.pager_path;
  result.store = paging.store;
  result.group = options.name;
  result.group_id = paging.group_id;
  result.generation = options.generation;
  result.key = std::move(key);
  result.bytes_max = paging.store_bytes_max;
  result.allow_memory_file_systems = paging.allow_memory_file_systems;
  result.segment_bytes_max = paging.segment_bytes_max;
  if (paging.as_owner) result.rights = CallerRights{options.uid, options.gid, options.groups};
  return result;
}

std::shared_ptr<const StoreKey> load_store_key(const std::string& path) {
  if (path.empty()) return nullptr;
  return std::make_shared<const StoreKey>(StoreKey::load_or_make(path));
}

}  // namespace replpage
