// How a group's options name its part of a page store.
#pragma once

#include <memory>
#include <string>

#include "core/group/group_types.h"
#include "core/link/pager_link.h"

namespace replpage {

// `options.paging` is set.
PagerOptions pager_options(const GroupOptions& options, std::shared_ptr<const StoreKey> key);

// Makes the key where there is none. Null for an empty path: nothing is encrypted.
std::shared_ptr<const StoreKey> load_store_key(const std::string& path);

}  // namespace replpage
