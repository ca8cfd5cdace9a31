"""What people want of GitHub's API, in their words, and which of its 1,223 operations does it (any of several).

Rule: written before the search was looked at. Numbers 1, 3, 5, ... were used to choose its weights, the others only to
report on it. The document is `tests/fixtures/openapi/github.json.xz`.
"""

from typing import Final

GITHUB: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("report a bug in a repository", ("issues_create",)),
    ("what bugs are open in this project", ("issues_list-for-repo",)),
    ("close an issue", ("issues_update",)),
    ("answer somebody in an issue thread", ("issues_create-comment",)),
    ("put a label on an issue", ("issues_add-labels",)),
    ("give this issue to a colleague", ("issues_add-assignees",)),
    ("who can I assign issues to", ("issues_list-assignees",)),
    ("open a PR", ("pulls_create",)),
    ("which pull requests are waiting for review", ("pulls_list",)),
    ("merge the PR", ("pulls_merge",)),
    (
        "approve a pull request",
        (
            "pulls_create-review",
            "pulls_submit-review",
        ),
    ),
    ("ask Ada to review my pull request", ("pulls_request-reviewers",)),
    ("what files did this pull request change", ("pulls_list-files",)),
    ("read a file from a repository", ("repos_get-content",)),
    ("edit a file and commit it", ("repos_create-or-update-file-contents",)),
    ("show the readme", ("repos_get-readme",)),
    ("make a new repository for me", ("repos_create-for-authenticated-user",)),
    ("remove a repository", ("repos_delete",)),
    ("fork this repo", ("repos_create-fork",)),
    ("star a project", ("activity_star-repo-for-authenticated-user",)),
    ("which repositories have I starred", ("activity_list-repos-starred-by-authenticated-user",)),
    ("look for code that contains a string", ("search_code",)),
    ("find people by name", ("search_users",)),
    ("latest release of the project", ("repos_get-latest-release",)),
    ("publish a release", ("repos_create-release",)),
    (
        "attach a binary to a release",
        (
            "repos_upload-release-asset",
            "repos_update-release-asset",
        ),
    ),
    (
        "why did the CI build fail: show me the logs",
        (
            "actions_download-workflow-run-logs",
            "actions_download-job-logs-for-workflow-run",
            "actions_download-workflow-run-attempt-logs",
        ),
    ),
    (
        "start the build again",
        (
            "actions_re-run-workflow",
            "actions_re-run-workflow-failed-jobs",
        ),
    ),
    (
        "stop the running pipeline",
        (
            "actions_cancel-workflow-run",
            "actions_force-cancel-workflow-run",
        ),
    ),
    ("trigger a workflow by hand", ("actions_create-workflow-dispatch",)),
    ("recent commits on the main branch", ("repos_list-commits",)),
    (
        "difference between two branches",
        (
            "repos_compare-commits-with-basehead",
            "repos_compare-commits",
        ),
    ),
    ("protect the main branch", ("repos_update-branch-protection",)),
    ("rename a branch", ("repos_rename-branch",)),
    ("who contributed to this project", ("repos_list-contributors",)),
    ("invite somebody to collaborate on a repository", ("repos_add-collaborator",)),
    ("what permissions does this person have on the repo", ("repos_get-collaborator-permission-level",)),
    ("store a password for the CI of a repository", ("actions_create-or-update-repo-secret",)),
    ("my unread notifications", ("activity_list-notifications-for-authenticated-user",)),
    ("mark everything as read", ("activity_mark-notifications-as-read",)),
    ("who am I logged in as", ("users_get-authenticated",)),
    ("who follows this user", ("users_list-followers-for-user",)),
    (
        "block an abusive user in our organization",
        (
            "orgs_block-user",
            "users_block",
        ),
    ),
    ("invite a new member to the organization", ("orgs_create-invitation",)),
    ("make a team", ("teams_create",)),
    ("add a person to a team", ("teams_add-or-update-membership-for-user-in-org",)),
    ("share a code snippet as a gist", ("gists_create",)),
    (
        "turn markdown into html",
        (
            "markdown_render",
            "markdown_render-raw",
        ),
    ),
    ("how many API calls do I have left", ("rate-limit_get",)),
    (
        "known security holes in our dependencies",
        (
            "dependabot_list-alerts-for-repo",
            "dependabot_list-alerts-for-org",
            "security-advisories_list-repository-advisories",
        ),
    ),
    (
        "leaked passwords found in the code",
        (
            "secret-scanning_list-alerts-for-repo",
            "secret-scanning_list-alerts-for-org",
        ),
    ),
    ("get told by a web hook when somebody pushes", ("repos_create-webhook",)),
    (
        "add a thumbs up to a comment",
        (
            "reactions_create-for-issue-comment",
            "reactions_create-for-commit-comment",
            "reactions_create-for-pull-request-review-comment",
        ),
    ),
    ("how many people visited the repository", ("repos_get-views",)),
    ("download the source as a zip archive", ("repos_download-zipball-archive",)),
    (
        "set a deadline: milestone",
        (
            "issues_create-milestone",
            "issues_update-milestone",
        ),
    ),
    (
        "start a cloud development machine",
        (
            "codespaces_start-for-authenticated-user",
            "codespaces_create-for-authenticated-user",
            "codespaces_create-with-repo-for-authenticated-user",
        ),
    ),
    ("what licence does the repo have", ("licenses_get-for-repo",)),
    ("lock a heated discussion", ("issues_lock",)),
    (
        "how much are we paying for actions minutes",
        (
            "billing_get-github-actions-billing-org",
            "billing_get-github-billing-usage-report-org",
            "billing_get-github-billing-usage-summary-report-org",
            "billing_get-github-billing-usage-report-user",
            "billing_get-github-billing-usage-summary-report-user",
        ),
    ),
    ("upload a public ssh key", ("users_create-public-ssh-key-for-authenticated-user",)),
    ("languages a repository is written in", ("repos_list-languages",)),
    (
        "put a tag on a commit",
        (
            "git_create-tag",
            "git_create-ref",
        ),
    ),
    ("deploy to production", ("repos_create-deployment",)),
)
