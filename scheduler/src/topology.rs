//! The upper bound of a swarm: the maximum flow of microbatches through its stages, and the bottleneck.
//!
//! Every microbatch passes one replica of each stage. A replica is an edge of the graph whose capacity is the number of
//! microbatches it can compute in a second; links are edges too, unlimited unless a capacity is given. The maximum flow is
//! the bound that no router can exceed, and the minimum cut names the bottleneck. (Ford and Fulkerson 1956; Dinitz 1970.)

use std::collections::BTreeMap;
use std::ops::{Add, Sub};

use petgraph::algo::{PositiveMeasure, dinics};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef as _;

use crate::{Duration, Hop, Instance, PeerTable, StageIndex};

/// Millionths of a microbatch, in a second or in the time of a whole run: whole numbers, so that every platform computes
/// the same bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capacity(pub u64);

impl Capacity {
    /// More than the capacity of any replica or link.
    pub const UNLIMITED: Self = Self(u64::MAX / 4);

    /// One microbatch every `time`; a time of zero counts as a nanosecond.
    #[must_use]
    pub fn one_every(time: Duration) -> Self {
        let nanos = time.as_nanos().max(1);
        Self(u64::try_from(1_000_000_000_000_000 / nanos).unwrap_or(u64::MAX).min(Self::UNLIMITED.0))
    }

    /// This capacity a second, over `time`.
    #[must_use]
    pub fn over(self, time: Duration) -> Self {
        let product = u128::from(self.0) * time.as_nanos() / 1_000_000_000;
        Self(u64::try_from(product).unwrap_or(u64::MAX).min(Self::UNLIMITED.0))
    }

    /// Microbatches, in a second or in the time of a whole run.
    #[must_use]
    pub fn microbatches(self) -> f64 {
        // Exact up to 2^53.
        #[allow(clippy::cast_precision_loss)]
        let count = self.0 as f64;
        count / 1e6
    }
}

impl Add for Capacity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Capacity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl PositiveMeasure for Capacity {
    fn zero() -> Self {
        Self(0)
    }

    fn max() -> Self {
        Self(u64::MAX)
    }
}

/// A part of the minimum cut: raising the capacity of all parts together raises the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// A replica.
    Replica(Hop),
    /// A link, from the first replica to the second.
    Link(Hop, Hop),
    /// A stage without a replica.
    EmptyStage(StageIndex),
}

/// The stages of a run as a graph of capacities.
#[derive(Clone, Debug)]
pub struct StageGraph {
    graph: DiGraph<(), Edge>,
    source: NodeIndex,
    sink: NodeIndex,
    /// The stages without a replica.
    empty: Vec<StageIndex>,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    capacity: Capacity,
    /// The replica or link of the edge; `None` for joints between them.
    part: Option<Cut>,
}

impl StageGraph {
    /// A graph of the replicas that serve in `table`, each with its `capacity`, over unlimited links.
    #[must_use]
    pub fn of_table(table: &PeerTable, stages: u16, capacity: impl Fn(Instance) -> Capacity) -> Self {
        let serving = (0..stages).map(StageIndex).flat_map(|stage| table.serving(stage));
        Self::new(stages, serving.filter_map(|member| Some((member.hop()?, capacity(member.instance)))))
    }

    /// A graph of `replicas` with their capacities, over unlimited links.
    #[must_use]
    pub fn new(stages: u16, replicas: impl IntoIterator<Item = (Hop, Capacity)>) -> Self {
        let by_stage = by_stage(replicas);
        let mut graph = Self::without_replicas(stages, &by_stage);
        let mut joint = graph.source;
        for stage in (0..stages).map(StageIndex) {
            let next = graph.graph.add_node(());
            for &(hop, capacity) in by_stage.get(&stage).into_iter().flatten() {
                graph.connect(joint, next, capacity, Some(Cut::Replica(hop)));
            }
            joint = next;
        }
        graph.connect(joint, graph.sink, Capacity::UNLIMITED, None);
        graph
    }

    /// As [`StageGraph::new`], over links of limited capacity between replicas of neighbouring stages.
    #[must_use]
    pub fn with_links(
        stages: u16,
        replicas: impl IntoIterator<Item = (Hop, Capacity)>,
        link: impl Fn(Instance, Instance) -> Capacity,
    ) -> Self {
        let by_stage = by_stage(replicas);
        let mut graph = Self::without_replicas(stages, &by_stage);
        let mut before: BTreeMap<Hop, NodeIndex> = BTreeMap::new();
        for stage in (0..stages).map(StageIndex) {
            let mut exits = BTreeMap::new();
            for &(hop, capacity) in by_stage.get(&stage).into_iter().flatten() {
                let (entry, exit) = (graph.graph.add_node(()), graph.graph.add_node(()));
                graph.connect(entry, exit, capacity, Some(Cut::Replica(hop)));
                for (&from, &node) in &before {
                    let part = Some(Cut::Link(from, hop));
                    graph.connect(node, entry, link(from.instance, hop.instance), part);
                }
                if stage.0 == 0 {
                    graph.connect(graph.source, entry, Capacity::UNLIMITED, None);
                }
                exits.insert(hop, exit);
            }
            before = exits;
        }
        for &exit in before.values() {
            graph.connect(exit, graph.sink, Capacity::UNLIMITED, None);
        }
        graph
    }

    fn without_replicas(stages: u16, by_stage: &ByStage) -> Self {
        let mut graph = DiGraph::new();
        let (source, sink) = (graph.add_node(()), graph.add_node(()));
        let empty = (0..stages).map(StageIndex).filter(|stage| !by_stage.contains_key(stage)).collect();
        Self { graph, source, sink, empty }
    }

    fn connect(&mut self, from: NodeIndex, to: NodeIndex, capacity: Capacity, part: Option<Cut>) {
        self.graph.add_edge(from, to, Edge { capacity, part });
    }

    /// The highest number of microbatches that can pass.
    #[must_use]
    pub fn bound(&self) -> Capacity {
        self.flow().0
    }

    /// The parts that limit the bound, sorted: every path crosses one of them.
    #[must_use]
    pub fn bottleneck(&self) -> Vec<Cut> {
        if !self.empty.is_empty() {
            return self.empty.iter().copied().map(Cut::EmptyStage).collect();
        }
        let reachable = self.reachable(&self.flow().1);
        let crossing = self
            .graph
            .edge_references()
            .filter(|edge| reachable[edge.source().index()] && !reachable[edge.target().index()]);
        let mut cut: Vec<Cut> = crossing.filter_map(|edge| edge.weight().part).collect();
        cut.sort_unstable();
        cut
    }

    /// The maximum flow, and the flow of each edge.
    fn flow(&self) -> (Capacity, Vec<Capacity>) {
        let capacities = self.graph.map(|_, ()| (), |_, edge| edge.capacity);
        dinics(&capacities, self.source, self.sink)
    }

    /// For each node, by index, whether more flow could still reach it.
    fn reachable(&self, flow: &[Capacity]) -> Vec<bool> {
        let mut reachable = vec![false; self.graph.node_count()];
        let mut open = vec![self.source];
        while let Some(node) = open.pop() {
            if std::mem::replace(&mut reachable[node.index()], true) {
                continue;
            }
            for edge in self.graph.edges(node) {
                if flow[edge.id().index()] < edge.weight().capacity {
                    open.push(edge.target());
                }
            }
            for edge in self.graph.edges_directed(node, petgraph::Direction::Incoming) {
                if flow[edge.id().index()] > Capacity(0) {
                    open.push(edge.source());
                }
            }
        }
        reachable
    }
}

type ByStage = BTreeMap<StageIndex, Vec<(Hop, Capacity)>>;

/// The replicas by stage; feeders are left out.
fn by_stage(replicas: impl IntoIterator<Item = (Hop, Capacity)>) -> ByStage {
    let mut by_stage = ByStage::new();
    for (hop, capacity) in replicas {
        if let Some(stage) = hop.stage {
            by_stage.entry(stage).or_default().push((hop, capacity));
        }
    }
    by_stage
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Membership;
    use crate::fixtures::{a, b, member};

    fn table(hops: &[Hop]) -> PeerTable {
        let mut table = PeerTable::new(crate::fixtures::feeder());
        let members = hops.iter().copied().map(member).collect();
        table.update(Membership { version: 1, members, ..Membership::default() });
        table
    }

    fn ms(time: u64) -> Capacity {
        Capacity::one_every(Duration::from_millis(time))
    }

    #[test]
    fn the_stage_with_the_least_capacity_is_the_bound_and_the_bottleneck() {
        // 10 a second, 4 + 5, 8 + 4.
        let times = [(a(0), 100), (a(1), 250), (b(1), 200), (a(2), 125), (b(2), 250)];
        let replicas = times.map(|(hop, time)| (hop, ms(time)));
        let graph = StageGraph::new(3, replicas);
        assert_eq!(graph.bound().microbatches(), 9.0);
        assert_eq!(graph.bottleneck(), [Cut::Replica(a(1)), Cut::Replica(b(1))]);
        let linked = StageGraph::with_links(3, replicas, |_, _| Capacity::UNLIMITED);
        assert_eq!((linked.bound(), linked.bottleneck()), (graph.bound(), graph.bottleneck()));
        let capacity =
            |instance| replicas.iter().find(|(hop, _)| hop.instance == instance).map(|(_, time)| *time);
        let table = table(&replicas.map(|(hop, _)| hop));
        let graph = StageGraph::of_table(&table, 3, |instance| capacity(instance).unwrap());
        assert_eq!((linked.bound(), linked.bottleneck()), (graph.bound(), graph.bottleneck()));
    }

    #[test]
    fn a_narrow_link_limits_fast_replicas() {
        let replicas = [a(0), b(0), a(1), b(1)].map(|hop| (hop, ms(100)));
        let link = |from, to| match (from == a(0).instance, to == a(1).instance) {
            (true, true) => ms(500),
            (true, false) => ms(1_000),
            (false, _) => ms(50),
        };
        let graph = StageGraph::with_links(2, replicas, link);
        assert_eq!(graph.bound().microbatches(), 13.0);
        let expected = [Cut::Replica(b(0)), Cut::Link(a(0), a(1)), Cut::Link(a(0), b(1))];
        assert_eq!(graph.bottleneck(), expected);
    }

    #[test]
    fn an_empty_stage_stops_everything() {
        let graph = StageGraph::new(3, [(a(0), ms(100)), (a(2), ms(100))]);
        assert_eq!((graph.bound(), graph.bottleneck()), (Capacity(0), vec![Cut::EmptyStage(StageIndex(1))]));
    }

    #[test]
    fn a_capacity_counts_over_a_time() {
        assert_eq!(ms(250).over(Duration::from_secs(10)).microbatches(), 40.0);
    }
}
