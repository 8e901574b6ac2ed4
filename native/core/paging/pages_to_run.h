// Which pages a process cannot begin to run without.
#pragma once

#include "core/image/process_image.h"
#include "core/memory/page_ranges.h"

namespace replpage {

// Pages that the kernel itself writes to before a thread executes an instruction, or that its first
// instructions use: the rseq(2) area, the head of its robust list, the word that is cleared when it
// ends, and the stack in use. Were they in a page store that does not answer, a promoted thread
// would stand still in the kernel, before anything that is resident could run.
PageRanges pages_to_run(const ProcessImage& process);

}  // namespace replpage
