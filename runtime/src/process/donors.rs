//! Donors of states, in the words that people read.

use swarmline_scheduler::Instance;
use swarmline_scheduler::transfer::DownloadNote;

/// The donor that a note is about, and its fault; `None` if the donor has none.
pub(crate) fn donor_fault(note: &DownloadNote) -> Option<(Instance, String)> {
    Some(match note {
        DownloadNote::Wrong(donor) => (*donor, "sent a chunk that it had not announced".to_owned()),
        DownloadNote::Unusable(donor, error) => (*donor, format!("announced no state of this run ({error})")),
        DownloadNote::Unfit(donor) => (*donor, "sent a state that does not fit the stage".to_owned()),
        DownloadNote::Silent(donor) => (*donor, "is silent".to_owned()),
        DownloadNote::Lost(donor) => (*donor, "is gone or cannot be reached".to_owned()),
        DownloadNote::Declined(..) | DownloadNote::TooOld(_) | DownloadNote::NoDonor => return None,
    })
}
