//! A replica that no longer reaches the feeder: others finish what it cannot, and the run ends without a loss.
//!
//! The processes run in network namespaces that the test makes, which takes Linux, `ip` and root.

use std::io::Write as _;
use std::process::Command;

use swarmline::report::{Event, Incident};

use crate::process::Process;
use crate::recipe::Recipe;
use crate::replicas::{assert_sound, wait_for};
use crate::swarm::{Swarm, account, serving};

/// Address of the coordinator and the replicas that reach every member.
const HUB: &str = "10.77.0.1";
const FEEDER: &str = "10.77.0.3";
const CUT_OFF: &str = "10.77.0.2";
/// Optimizer steps of each replica.
const STEPS: u64 = 3_000;
const REPLICAS: usize = 2;
/// Microbatches that are done when the link breaks for good.
const BEFORE: u64 = 100;

#[test]
fn a_replica_cut_off_from_the_feeder_for_good_loses_nothing_and_the_run_ends() {
    let Some(namespaces) = Namespaces::for_test() else { return };
    let _turn = Swarm::turn();
    // Averaging rounds are called by the feeder: those after the last microbatch would wait a minute each for a replica
    // that hears no call.
    let more = "[averaging]\ninterval = 0\n".to_owned();
    let (stages, replicas, gradient_accumulation_steps) = (2, REPLICAS, 1);
    let recipe = Recipe {
        stages,
        replicas,
        gradient_accumulation_steps,
        steps: STEPS,
        more,
        ..Recipe::asynchronous()
    };
    let folder = recipe.write();
    let run_file = folder.run_file();
    let mut coordinator =
        namespaces.start_at(HUB, "coordinator", &["coordinator", "--run", &run_file, "--no-keeper"]);
    let invite = coordinator.hear("its invite", |event| match event {
        Event::Listening { invite, .. } => Some(invite),
        _ => None,
    });
    let mut replicas = Vec::new();
    for (index, address) in [HUB, HUB, HUB, CUT_OFF].into_iter().enumerate() {
        let name = format!("replica {index}");
        let mut replica = namespaces.start_at(address, &name, &["join", &invite, "--threads", "1"]);
        assert_eq!(usize::from(serving(&mut replica)), index % 2, "stages are given in turn");
        replicas.push(replica);
    }
    let mut feeder = namespaces.start_at(FEEDER, "feeder", &["feed", &invite]);
    wait_for(&mut feeder, BEFORE);
    namespaces.cut_off();

    replicas[3].hear("that it hears nothing of the feeder", |event| match event {
        Event::Incident(Incident::FeederSilent { .. }) => Some(()),
        _ => None,
    });
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    let account = account(&mut feeder);
    assert_sound(&account);
    assert_eq!(account.finished, STEPS * REPLICAS as u64);
    for replica in &mut replicas {
        assert_eq!(replica.end(), 0, "{}", replica.errors());
    }
    assert_eq!(coordinator.end(), 0);
}

/// A namespace each for the feeder and the replica that is cut off, and a hub for the others, with a bridge between
/// them. Dropping them removes them.
struct Namespaces {
    id: u32,
}

/// The namespaces.
const PLACES: [&str; 3] = ["hub", "feeder", "spoke"];

impl Namespaces {
    /// The namespaces; `None`, with the reason on standard error, if this machine makes none and none are required.
    fn for_test() -> Option<Self> {
        let made = Self { id: std::process::id() };
        let Err(reason) = made.set_up() else { return Some(made) };
        let required = std::env::var_os("SWARMLINE_REQUIRE_NAMESPACES").is_some_and(|value| value == "1");
        assert!(!required, "{reason}");
        // Unlike the print macros this is shown when a test passes.
        let _ = writeln!(std::io::stderr(), "skipped: {reason}");
        None
    }

    fn name(&self, place: &str) -> String {
        format!("swarmline-{place}-{}", self.id)
    }

    fn set_up(&self) -> Result<(), String> {
        for place in PLACES {
            ip(&format!("netns add {}", self.name(place)))?;
            ip(&format!("-n {} link set lo up", self.name(place)))?;
        }
        let hub = self.name("hub");
        ip(&format!("-n {hub} link add bridge type bridge"))?;
        ip(&format!("-n {hub} addr add {HUB}/24 dev bridge"))?;
        ip(&format!("-n {hub} link set bridge up"))?;
        for (place, address) in [("feeder", FEEDER), ("spoke", CUT_OFF)] {
            let namespace = self.name(place);
            ip(&format!("-n {hub} link add {place} type veth peer name uplink netns {namespace}"))?;
            ip(&format!("-n {hub} link set {place} master bridge up"))?;
            ip(&format!("-n {namespace} addr add {address}/24 dev uplink"))?;
            ip(&format!("-n {namespace} link set uplink up"))?;
        }
        Ok(())
    }

    /// From now on no packet from the spoke reaches the feeder.
    fn cut_off(&self) {
        ip(&format!("-n {} route add blackhole {FEEDER}/32", self.name("spoke"))).unwrap();
    }

    /// Starts a process where this address is.
    fn start_at(&self, address: &str, name: &str, arguments: &[&str]) -> Process {
        let place = match address {
            FEEDER => "feeder",
            CUT_OFF => "spoke",
            _ => "hub",
        };
        let (namespace, listen) = (self.name(place), format!("{address}:0"));
        let prefix = ["ip", "netns", "exec", &namespace];
        let fixed = ["--listen", &listen, "--json", "--leash"];
        Process::start_under(&prefix, name, arguments.iter().chain(&fixed).copied())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for place in PLACES {
            let _ = ip(&format!("netns del {}", self.name(place)));
        }
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|error| format!("no network namespaces without `ip`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let cause = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("no network namespaces here: `ip {arguments}`: {cause}"))
}
