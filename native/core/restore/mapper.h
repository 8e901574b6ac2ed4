// Carries out the steps of a mapping plan that make or change mappings.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/restore/address_gaps.h"
#include "core/restore/mapping_batch.h"
#include "core/restore/primary_files.h"
#include "core/restore/replica.h"
#include "core/restore/shared_objects.h"

namespace replpage {

// What mappings are made of, besides files that have a path.
struct MappedSources {
  const SharedObjects& objects;
  PrimaryFiles files;
};

// Opens the files that are needed, and passes them and objects to the process in portions.
class Mapper {
 public:
  Mapper(ReplicaProcess& process, const MappedSources& sources, AddressGaps gaps)
      : process_(process), sources_(sources), gaps_(std::move(gaps)) {}

  // Throws SysError, with ESTALE when a file was replaced by another of that name.
  void make(const std::vector<MappingStep>& steps);

 private:
  using Key = std::pair<std::string, bool>;  // path, opened for writing

  // Takes steps until the sources they need are enough for one portion.
  void collect(const std::vector<MappingStep>& steps, size_t& last);
  [[nodiscard]] UniqueFd open_source(const MappingImage& mapping) const;
  void need(const MappingImage& next);
  void add(const MappingStep& step, const std::vector<int>& remote, SyscallBatch& batch);
  MapSource source_of(const MappingImage& next, const std::vector<int>& remote) const;

  ReplicaProcess& process_;
  const MappedSources& sources_;
  AddressGaps gaps_;
  std::vector<UniqueFd> owned_;
  std::vector<int> borrowed_;
  std::map<Key, size_t> by_file_;
  std::map<std::pair<uint64_t, uint64_t>, size_t> by_object_;
};

}  // namespace replpage
