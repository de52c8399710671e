// Lists of layers, as users write them.
#ifndef TACTIC_APPS_LAYER_LIST_H_
#define TACTIC_APPS_LAYER_LIST_H_

#include <string>
#include <vector>

#include "tactic/status.h"

namespace tactic::app {

// "0,3,5-9" as 0, 3, 5, 6, 7, 8, 9; "all" as nothing. InvalidArgument names --layers unless all are
// below `end`.
Status ParseLayers(const std::string& text, int end, std::vector<int>* layers);

}  // namespace tactic::app

#endif  // TACTIC_APPS_LAYER_LIST_H_
